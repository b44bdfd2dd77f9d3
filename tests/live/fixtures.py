"""Servers for the tests that want the real thing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import stores
from tests.live.people import Person
from tests.live.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SQLite and a local directory; one for all tests that leave it running."""
    server = Server(tmp_path_factory.mktemp("server") / "home")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SQLite and the real S3 server, with buckets of its own."""
    endpoint = stores.ceph()
    with stores.buckets(endpoint, len(stores.ALIASES)) as (vault, staging, release, public):
        others = {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release, "S3_PUBLIC_BUCKET": public}
        server = Server(tmp_path_factory.mktemp("server") / "home", **endpoint.environment(vault), **others)
        try:
            yield server.start()
        finally:
            server.kill()


@pytest.fixture
def member(server: Server, tmp_path: Path) -> Person:
    """With a collection of their own, so that tests do not meet."""
    return Person(server, "member", tmp_path)


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that are not started yet, with further settings: `new_server(S3_BUCKET="vault").start()`."""
    made: list[Server] = []

    def make(home: Path | None = None, **environment: str) -> Server:
        made.append(Server(home or tmp_path / f"home-{len(made)}", **environment))
        return made[-1]

    yield make
    for server in made:
        server.kill()
