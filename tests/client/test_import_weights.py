"""`tid import-weights` as people meet it."""

import json
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from client.cli import main
from client.commands.import_weights import class_names
from client.errors import ClientError
from tid_core.detectors.build import build_detector
from tid_core.detectors.weights import file_classes
from tid_core.importing.names import public_name
from tid_core.spec import TeacherSpec

torch.set_num_threads(1)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def imports(tmp_path, monkeypatch, capsys) -> Callable[..., Ran]:
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["tid", "import-weights", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    detector = build_detector("atss_resnet18_fpn", num_classes=3, norm="frozen")
    state = {public_name(detector.info, key): value for key, value in detector.model.state_dict().items()}
    path = tmp_path_factory.mktemp("public") / "atss_r18_fpn_1x.pth"
    torch.save({"meta": {"CLASSES": ("cat", "[b]dog", "gnu"), "config": "model = dict()"}, "state_dict": state}, path)
    return path


def test_a_checkpoint_becomes_a_file_for_a_spec(imports, checkpoint: Path, tmp_path: Path) -> None:
    ran = imports(checkpoint, "--from", "mmdetection")
    assert (ran.code, ran.err) == (0, "")
    written = tmp_path / "atss_r18_fpn_1x.safetensors"
    assert file_classes(written) == ["cat", "[b]dog", "gnu"]
    assert re.search(r"detector +atss_resnet18_fpn\n", ran.out)
    assert "3: cat, [b]dog, gnu" in ran.out
    assert "no normalisation" in ran.out
    teacher = yaml.safe_load(ran.out[ran.out.index("  teacher:") :])["teacher"]
    assert TeacherSpec.model_validate(teacher).weights.file == written  # type: ignore[union-attr]

    again = imports(checkpoint, "--from", "mmdetection")
    assert again.code == 1
    assert "--force" in again.err


def test_names_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\ntraffic light, red\n dog \n\n")
    assert json.loads(class_names(str(file))) == ["cat", "traffic light, red", "dog"]
    assert json.loads(class_names("x, y,z")) == ["x", "y", "z"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClientError, match=r"names\.txt.*one class name a line"):
        class_names(str(file))


def test_refusals_are_one_red_line(imports, checkpoint: Path, tmp_path: Path) -> None:
    ran = imports(checkpoint, "--from", "mmdetection", "--classes", "x,y")
    assert (ran.code, ran.out) == (1, "")
    assert "2 names" in ran.err
    assert "[classes_unfit]" in ran.err
    ran = imports("none.pth", "--from", "mmdetection")
    assert (ran.code, "there is no such file" in ran.err) == (1, True)
    assert imports(checkpoint, "--from", "mmdetection", "-o", "x.pth").code == 1
    assert imports(checkpoint, "--from", "detectron").code == 2
    assert imports(checkpoint).code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_torch_it_says_what_to_install(imports, checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else find_spec(name))
    ran = imports(checkpoint, "--from", "mmdetection")
    assert ran.code == 1
    assert "tid-service[worker]" in ran.err
