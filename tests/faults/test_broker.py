"""The broker carries ticks, never state: what waited in it may be lost (F-29, F-30)."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import redis

from tests import needs
from tests.live.people import Person
from tests.live.server import Server
from tests.live.waiting import wait_for


def delete(member: Person) -> None:
    assert member.api("DELETE", f"/api/v1/collections/{member.collection}/")[0] == 202


def is_destroyed(member: Person) -> bool:
    (done,) = member.server.sql("SELECT count(*) FROM purge_destruction WHERE status = 'done' AND slug = ?", member.collection)
    return bool(done[0])


@pytest.mark.long
def test_work_is_found_again_without_anything_that_the_broker_had(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """Power goes while a collection waits for its end, and the broker's files and beat's memory are lost with it."""
    server = ready_server(DELETE_GRACE="1").start()
    member = Person(server, "member", tmp_path)
    member.upload("a.bin", b"a" * 1000)
    delete(member)
    server.kill()
    for kept in server.home.glob("broker*"):
        shutil.rmtree(kept)
    for kept in server.home.glob("celerybeat-schedule*"):
        kept.unlink()

    server.start()

    wait_for(lambda: is_destroyed(member))
    assert not any(member.collection in str(path) for path in server.object_files())
    server.check_consistency()


@pytest.mark.needs("redis")
def test_ticks_go_on_when_redis_forgets_everything(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    url = f"{needs.address('redis').rpartition('/')[0]}/13"  # not beside another test's ticks
    with closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
        server = ready_server(DELETE_GRACE="1", BROKER_URL=url).start()
        first = Person(server, "member", tmp_path)
        delete(first)
        wait_for(lambda: is_destroyed(first))

        client.flushdb()
        second = Person(server, "member", tmp_path)
        delete(second)

        wait_for(lambda: is_destroyed(second))
        server.kill()
        client.flushdb()


def test_server_answers_without_a_broker(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """Requests write rows and wait for nobody; what they ask for is done when there is a broker again."""
    server = ready_server(DELETE_GRACE="1", BROKER_URL="redis://127.0.0.1:1/0").start()
    member = Person(server, "member", tmp_path)
    member.upload("a.bin", b"a" * 1000)
    delete(member)
    assert not is_destroyed(member)
    server.kill()
    server.environment.pop("BROKER_URL")
    server.start()
    wait_for(lambda: is_destroyed(member))
