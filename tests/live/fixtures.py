"""Fixtures that start real server processes."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import stores
from tests.live.people import Person
from tests.live.server import Server
from tests.needs import mark_dependents


@pytest.fixture(scope="session")
def first_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The home folder after a first start. It is created once for all workers and passes, because a first start is slow."""
    base = tmp_path_factory.getbasetemp()
    shared = Path(os.environ.get("TEST_RUN_FOLDER") or (base if worker_id == "master" else base.parent))
    home = shared / "first-home"
    with (shared / "first-home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            # Without a broker no tick runs. A tick would mark the vault of this home, and each copy has its own vault.
            server = Server(shared / "first-home.new", BROKER_URL="redis://127.0.0.1:1/0")
            try:
                server.start()
                assert server.stop() == 0
            finally:
                server.kill()
            server.home.rename(home)
    return home


@pytest.fixture(scope="session")
@mark_dependents(pytest.mark.server)
def server(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    """A server on SQLite and a local directory, shared by all tests that do not stop it."""
    server = Server(tmp_path_factory.mktemp("server") / "home")
    server.copy_home_from(first_home)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
@mark_dependents(pytest.mark.server, pytest.mark.needs("ceph"))
def s3_server(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    """A server on SQLite and the real S3 server, with its own buckets."""
    endpoint = stores.ceph()
    with stores.buckets(endpoint, len(stores.ALIASES)) as (vault, staging, release):
        others = {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        server = Server(tmp_path_factory.mktemp("server") / "home", **endpoint.environment(vault), **others)
        server.copy_home_from(first_home)
        try:
            yield server.start()
        finally:
            server.kill()


@pytest.fixture(
    params=[
        pytest.param("server", id="local", marks=pytest.mark.server),
        pytest.param("s3_server", id="s3", marks=[pytest.mark.server, pytest.mark.needs("ceph")]),
    ]
)
def each_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def member(server: Server, tmp_path: Path) -> Person:
    """A member with a new collection, so that tests do not affect each other."""
    return Person(server, "member", tmp_path)


@pytest.fixture
@mark_dependents(pytest.mark.server)
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers with new homes and additional settings: `new_server(S3_BUCKET="vault").start()`."""
    made: list[Server] = []

    def make(home: Path | None = None, **environment: str) -> Server:
        made.append(Server(home or tmp_path / f"home-{len(made)}", **environment))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def ready_server(new_server: Callable[..., Server], first_home: Path) -> Callable[..., Server]:
    """Like `new_server`, but with the home of a server that has been started before."""

    def make(**environment: str) -> Server:
        server = new_server(**environment)
        server.copy_home_from(first_home)
        return server

    return make
