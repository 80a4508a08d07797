"""Every move that the table does not have is refused, in the database as on paper."""

import itertools

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from store.fencing import locked, move
from store.states import ACTIONS, ENDED, OWNED, TRANSITIONS, WITHOUT_WORKER, Action, IllegalTransition, State, check

LEGAL = {
    "queued": "starting paused cancelled failed",
    "starting": "running queued pausing cancelling failed",
    "running": "succeeded failed queued pausing cancelling",
    "pausing": "paused starting running succeeded failed cancelling",
    "paused": "queued cancelled",
    "cancelling": "cancelled",
    "cancelled": "queued",
    "succeeded": "",
    "failed": "queued",
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_the_table_allows_what_is_written_here_and_nothing_else(old, new):
    if new in LEGAL[old].split():
        check(old, new)
        return
    with pytest.raises(IllegalTransition) as caught:
        check(old, new)
    assert f"from {old} to {new}" in str(caught.value)
    assert all(allowed in str(caught.value) for allowed in LEGAL[old].split())


def test_the_sets_of_states_agree_with_the_table():
    assert {state for state in State if TRANSITIONS[state] <= {State.QUEUED}} == ENDED, "but for a retry"
    assert set(WITHOUT_WORKER) == OWNED
    assert all(new in TRANSITIONS[old] for old, new in WITHOUT_WORKER.items())


ASKED = {
    Action.PAUSE: {State.PAUSING, State.PAUSED},
    Action.RESUME: {State.QUEUED},
    Action.CANCEL: {State.CANCELLING, State.CANCELLED},
    Action.RETRY: {State.QUEUED},
}


def test_what_can_be_asked_agrees_with_the_table():
    for action, wanted in ASKED.items():
        assert all(TRANSITIONS[state] & wanted or state is State.PAUSING for state in ACTIONS[action])
    assert TRANSITIONS[State.PAUSING] >= {State.STARTING, State.RUNNING}, "resumed before it was paused"
    for asked in (Action.PAUSE, Action.CANCEL):
        assert ACTIONS[asked] == {state for state in State if TRANSITIONS[state] & ASKED[asked]} - ENDED - _under_way(
            asked
        )


def _under_way(action):
    return {State.PAUSING} if action is Action.PAUSE else {State.CANCELLING}


def test_a_refused_move_leaves_the_job_as_it_was(world):
    job_id = world.submit().id
    for new in (State.RUNNING, State.SUCCEEDED, State.CANCELLING, State.QUEUED):
        with pytest.raises(IllegalTransition), world.database.write() as session:
            move(locked(job_id, session=session), new, session=session)
    assert world.state(job_id) is State.QUEUED


@pytest.mark.parametrize("assignment", ["state = 'dreaming'", "lease_token = 'x'"])
def test_the_database_itself_refuses_what_cannot_be(world, assignment):
    job_id = world.submit().id
    with pytest.raises(IntegrityError), world.database.write() as session:
        session.execute(text(f"UPDATE jobs SET {assignment} WHERE id = :id"), {"id": job_id})
