"""Where `tid demo` runs: a service of its own on this machine, or a server that is there already."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client import demo_data
from client.client import Client
from client.console import say
from client.demo_specs import DemoSize
from client.embedded import Embedded
from client.errors import ApiError

DATASET = "demo-digits"


@contextmanager
def own_service(folder: Path, size: DemoSize) -> Iterator[tuple[Client, str]]:
    """A service in `folder`, for as long as the demo lasts; gives a client of it and the dataset's name."""
    _draw(folder, size)
    say("starting the service: Valkey, the API, one worker, SQLite")
    roots = str((folder / "data").resolve())
    service = Embedded(folder / "service", port=0, workers=1, environment={"TID_DATA_ROOTS": roots})
    with service, Client(service.url) as client:
        client.add_dataset(DATASET, (folder / "data").resolve())
        say(f"the API is at {service.url}; training a teacher, then a student with and without it\n")
        yield client, DATASET


@contextmanager
def remote_server(folder: Path, size: DemoSize) -> Iterator[tuple[Client, str]]:
    """The server at TID_URL. It gets the dataset as an archive, unless an earlier demo of this size left it there."""
    name = f"{DATASET}-{size.images}"
    with Client() as client:
        is_there = _is_ready(client, name)
        _draw(folder, size)
        if not is_there:
            say(f"sending them to {client.url} as the dataset {name}")
            _send(client, name, folder / "data")
        say(f"training at {client.url}: a teacher, then a student with and without it\n")
        yield client, name


def _draw(folder: Path, size: DemoSize) -> None:
    say(f"writing {size.images:,} training images of handwritten digits to {folder / 'data'}")
    demo_data.write(folder / "data", images=size.images, seed=0)


def _is_ready(client: Client, name: str) -> bool:
    try:
        return client.dataset(name).state == "ready"
    except ApiError as error:
        if error.status != 404:
            raise
        return False


def _send(client: Client, name: str, data: Path) -> None:
    archive = Path(shutil.make_archive(str(data), "tar", data))
    try:
        client.add_dataset(name, archive=archive)
    finally:
        archive.unlink()
