"""Servers for the tests that want the real thing."""

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
    """What a first start leaves behind, which takes longer than all that comes after it: made once for all workers and passes."""
    base = tmp_path_factory.getbasetemp()
    shared = Path(os.environ.get("TEST_RUN_FOLDER") or (base if worker_id == "master" else base.parent))
    home = shared / "first-home"
    with (shared / "first-home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            # Without a broker nothing ticks: a worker would mark this home's own vault, and the copies have others.
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
    """SQLite and a local directory; one for all tests that leave it running."""
    server = Server(tmp_path_factory.mktemp("server") / "home")
    server.copy_home_from(first_home)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
@mark_dependents(pytest.mark.server, pytest.mark.needs("ceph"))
def s3_server(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    """SQLite and the real S3 server, with buckets of its own."""
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
    """With a collection of their own, so that tests do not meet."""
    return Person(server, "member", tmp_path)


@pytest.fixture
@mark_dependents(pytest.mark.server)
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that were never started, with further settings: `new_server(S3_BUCKET="vault").start()`."""
    made: list[Server] = []

    def make(home: Path | None = None, **environment: str) -> Server:
        made.append(Server(home or tmp_path / f"home-{len(made)}", **environment))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def ready_server(new_server: Callable[..., Server], first_home: Path) -> Callable[..., Server]:
    """As `new_server`, with its first start behind it."""

    def make(**environment: str) -> Server:
        server = new_server(**environment)
        server.copy_home_from(first_home)
        return server

    return make
