"""The broker transports ticks and holds no state: its messages may be lost (F-29, F-30)."""

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
def test_purge_continues_after_loss_of_all_broker_state(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """A power failure before the purge of a collection also deletes the files of the broker and of beat."""
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
def test_ticks_continue_after_redis_loses_its_data(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    url = f"{needs.address('redis').rpartition('/')[0]}/13"  # a separate database, without the ticks of other tests
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


def test_requests_succeed_without_a_broker(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """Requests only write rows; ticks process the rows when the broker is available again."""
    server = ready_server(DELETE_GRACE="1", BROKER_URL="redis://127.0.0.1:1/0").start()
    member = Person(server, "member", tmp_path)
    member.upload("a.bin", b"a" * 1000)
    delete(member)
    assert not is_destroyed(member)
    server.kill()
    server.environment.pop("BROKER_URL")
    server.start()
    wait_for(lambda: is_destroyed(member))
