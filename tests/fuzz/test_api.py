"""No request makes the server fail, and every answer is one that the description of the API promises."""

from collections.abc import Callable

import pytest
from schemathesis.python.asgi import ASGIClient

from tests.fuzz.hammer import ALL, Outcome, hammer
from tests.fuzz.seeded import Known

QUICK = frozenset({"fuzzing", "stateful"})
Hammer = Callable[..., Outcome]
pytestmark = pytest.mark.timeout(0)


@pytest.fixture
def tried(client: ASGIClient, known: Known, examples: int, is_long: bool) -> Hammer:
    """The outcome, in which nothing failed. Without `--fuzz-examples`, of the phases that are given."""

    def tried(*, phases: frozenset[str] = QUICK, **options: object) -> Outcome:
        outcome = hammer(client.app, known, examples=examples, phases=ALL if is_long else phases, **options)
        print(outcome)
        assert not outcome.failures, str(outcome)
        return outcome

    return tried


def new_key(client: ASGIClient) -> str:
    answer = client.post("/keys", json={"name": "fuzz", "scope": "admin"})
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["key"]
    return key


def test_a_server_that_never_had_a_key_lets_all_in(tried: Hammer, database_url: str) -> None:
    phases = ALL if database_url.startswith("sqlite") else QUICK
    outcome = tried(phases=phases, with_keys=False)
    assert {200, 201, 202, 404, 409, 422} <= set(outcome.statuses)
    assert 401 not in outcome.statuses


def test_without_a_key_only_probes_are_answered(tried: Hammer, client: ASGIClient) -> None:
    new_key(client)
    outcome = tried(phases=frozenset({"fuzzing"}), without=["positive_data_acceptance", "missing_required_header"])
    assert set(outcome.statuses) <= {200, 401, 405, 503}
    assert outcome.statuses[401] > outcome.statuses[200]


def test_an_administrator_may_do_everything(tried: Hammer, client: ASGIClient) -> None:
    outcome = tried(key=new_key(client))
    assert {200, 201, 202, 401, 404, 409, 422} <= set(outcome.statuses)
