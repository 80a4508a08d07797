"""`tid demo --remote`: a server that is elsewhere gets the images, once, and needs a key."""

from pathlib import Path

import pytest

from api.gate import keys as api_keys
from client.demo_places import DATASET, remote_server
from client.demo_specs import chosen
from client.embedded import Embedded
from client.errors import ApiError


def test_a_server_gets_the_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = chosen(quick=True, images=20)
    monkeypatch.setenv("TID_HOME", str(tmp_path / "home"))
    assert api_keys.main(["create", "--name", "me", "--scope", "write"]) == 0
    key = capsys.readouterr().out.strip()
    monkeypatch.delenv("TID_API_KEY", raising=False)
    with Embedded(tmp_path / "home", port=0, workers=0) as embedded:
        monkeypatch.setenv("TID_URL", embedded.url)
        with pytest.raises(ApiError, match="TID_API_KEY"), remote_server(tmp_path / "refused", size):
            pass
        assert not (tmp_path / "refused").exists(), "nothing is drawn for a server that does not want it"
        monkeypatch.setenv("TID_API_KEY", key)
        for folder, is_sent in ((tmp_path / "first", True), (tmp_path / "second", False)):
            with remote_server(folder, size) as (client, name):
                assert name == f"{DATASET}-20"
                dataset = client.dataset(name)
                assert dataset.state == "ready"
                assert {split: facts.images for split, facts in dataset.splits.items()} == {"train": 20, "val": 6}
            assert [path.name for path in folder.iterdir()] == ["data"], "for the pictures; the archive goes"
            assert ("sending them" in capsys.readouterr().out) == is_sent
