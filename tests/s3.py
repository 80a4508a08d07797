"""A real S3 server for the tests of a process; see `S3Server`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fire.s3 import BUCKET, KEY_ID, READER, SECRET, S3Server

__all__ = ["BUCKET", "KEY_ID", "READER", "SECRET", "S3Server", "s3_server"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """For all tests of a process: give each a prefix of its own, and leave it running."""
    # Not under pytest's own folder: the path of a unix socket may have only about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="tid-s3-"))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()
