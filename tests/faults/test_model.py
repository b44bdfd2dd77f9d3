"""The API against a model of it: any order of operations, some of them broken off at any point, and the invariants after each
(INV-01..INV-13, INV-15..INV-20).

The model is a dict. An operation that was broken off has either happened or not, which only a GET tells; from there on it counts.
People of both tenants try everything, so that each operation is also tried by strangers, by members without the right and by
nobody at all.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis.stateful import run_state_machine_as_test
from pytest_django import Settings

from egress import jobs, staging
from files import uploads
from tests import stores
from tests.api import paths
from tests.faults.breaking import FUSE, KINDS, Here
from tests.faults.letting_out import DAY, LettingOut
from tests.faults.strongroom import Strongroom
from tests.faults.world import COUNTED, TITLES, TWINS, Fault
from vault.stores import ensure_buckets


pytestmark = pytest.mark.both_databases
log = logging.getLogger(__name__)


@pytest.fixture(params=["local", "s3"])
def broken_store(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Every bucket behind the fuse. Nobody waits between two attempts, and uploads show a sign of life with every piece."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(uploads, "HEARTBEAT_SECONDS", -1)
    monkeypatch.setattr(staging, "ThreadPoolExecutor", Here)  # things are asked for one after the other
    monkeypatch.setattr(jobs, "TICK", 600.0)  # on a busy machine, too, a tick does all there is
    with ExitStack() as stack:
        if request.param == "s3":
            stack.enter_context(stores.stored_in(stores.moto(), settings))
        backend = {"local": "BreakingLocal", "s3": "BreakingS3"}[request.param]
        settings.STORAGES = settings.STORAGES | {
            alias: {
                "BACKEND": f"tests.faults.breaking.{backend}",
                "OPTIONS": settings.STORAGES[alias]["OPTIONS"] if request.param == "s3" else {"location": str(tmp_path / alias)},
            }
            for alias in settings.BUCKETS
        }
        ensure_buckets()
        yield


OLD, NEW, LAST = TWINS[0][0], TWINS[1][0], TWINS[3][0]
OPERATIONS: dict[str, Callable[[Strongroom, int, Fault], object]] = {
    "put": lambda room, case, fault: room.put("bob", case, NEW, b"canary" * 20, "none", fault, is_chunked=False),
    "replace": lambda room, case, fault: room.put("bob", case, OLD, b"canary" * 20, "fresh", fault, is_chunked=True),
    "form": lambda room, case, fault: room.post_form("bob", case, [(NEW, b"canary" * 20)], fault, is_named=False),
    "forms": lambda room, case, fault: room.post_form("bob", case, [(NEW, b"canary" * 20), (LAST, b"")], fault, is_named=True),
    "delete": lambda room, case, fault: room.delete_file("bob", case, OLD, "none", fault),
    "rename": lambda room, case, fault: room.rename("bob", case, OLD, NEW, fault),
    "read": lambda room, case, fault: room.read("bob", case, OLD, paths.content, fault),
    "archive": lambda room, case, fault: room.archive("bob", case, [], fault),
    "link": lambda room, case, fault: room.use_link(room.mint("bob", case, OLD, None), "get", fault),
    "clean-up": lambda room, case, fault: (room.delete_file("bob", case, OLD, "none", None), room.tick(0, fault)),
    "rotate": lambda room, case, fault: room.rotate(2, fault),
    "purge": lambda room, case, fault: (room.delete_collection("alice", case, None), room.purge(fault)),
    "submit": lambda room, case, fault: room.submit("bob", case, None, fault),
    "stage": lambda room, case, fault: (room.asked(case, steps=0), room.work(0, fault)),
    "staged": lambda room, case, fault: room.read_item("grace", room.asked(case, steps=1), 0, fault),
    "decide": lambda room, case, fault: room.decide("grace", room.asked(case, steps=1), "approve", fault),
    "approve": lambda room, case, fault: room.decide("ruth", room.asked(case, steps=2), "approve", fault),
    "reject": lambda room, case, fault: room.decide("grace", room.asked(case, steps=1), "reject", fault),
    "wipe": lambda room, case, fault: (room.decide("grace", room.asked(case, steps=1), "reject", None), room.work(0, fault)),
    "return": lambda room, case, fault: room.decide("grace", room.asked(case, steps=1), "return", fault),
    "resubmit": lambda room, case, fault: room.resubmit("bob", room.returned(case), None, fault),
    "withdraw": lambda room, case, fault: room.withdraw("bob", room.asked(case, steps=1), fault),
    "package": lambda room, case, fault: (room.asked(case, steps=3), room.work(0, fault)),
    "void": lambda room, case, fault: (room.asked(case, steps=3), room.change_role("ruth", "member"), room.work(0, fault)),
    "fail": lambda room, case, fault: room.failed(case, fault),
    "retry": lambda room, case, fault: room.retry("root", room.failed(case, None), fault),
    "fetch": lambda room, case, fault: room.take("bob", room.asked(case, steps=4), "whole", fault),
    "resume": lambda room, case, fault: room.take("bob", room.asked(case, steps=5), "rest", fault),
    "fetch-by-link": lambda room, case, fault: room.take_by_link("bob", room.asked(case, steps=4), fault),
    "revoke": lambda room, case, fault: room.revoke("alice", room.asked(case, steps=4), fault),
    "extend": lambda room, case, fault: room.extend("ruth", room.asked(case, steps=4), fault),
    "expire": lambda room, case, fault: (room.asked(case, steps=1), room.work(22 * DAY, fault)),
    "close": lambda room, case, fault: (room.asked(case, steps=4), room.work(8 * DAY, fault)),
    "destroy": lambda room, case, fault: (room.revoke("alice", room.asked(case, steps=4), None), room.purge(fault)),
}  # fmt: skip


def break_off(operation: str, kind: str, *, step: int) -> int:
    """At the first thing asked of store or database, then `step` further on, until it comes to its end; returns where."""
    for point in itertools.count(1, step):
        room = Strongroom()
        try:
            case: Any = room.create("alice", "acme", TITLES[0], "AES-GCM", None)
            room.put("alice", case, OLD, b"canary" * 30, "none", None, is_chunked=False)
            room.agrees()
            OPERATIONS[operation](room, case, (point, kind))
            is_over = not FUSE.is_blown
            room.all_holds()
            if room.requests:
                room.go_on_alone()
                room.all_holds()
            if is_over:
                room.go_to_the_end()
                return point
        finally:
            room.teardown()
    raise AssertionError("unreachable: it comes to its end")


@pytest.mark.parametrize("broken_store", ["local"], indirect=True)
def test_upload_broken_off_is_done_or_not(transactional_db: None, broken_store: None) -> None:
    """F-14, F-22, F-24."""
    assert break_off("put", "killed", step=20) > 20


@pytest.mark.parametrize("broken_store", ["local"], indirect=True)
def test_package_broken_off_is_done_or_not_and_goes_on(transactional_db: None, broken_store: None) -> None:
    """F-22, F-27."""
    assert break_off("package", "killed-behind", step=200) > 20


@pytest.mark.long
@pytest.mark.timeout(1_800)  # packaging has hundreds of points
@pytest.mark.parametrize("broken_store", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_broken_off_at_each_point_is_done_or_not(
    transactional_db: None, broken_store: None, operation: str, kind: str
) -> None:
    assert break_off(operation, kind, step=1) > 5


@pytest.mark.parametrize("broken_store", ["local"], indirect=True)
@pytest.mark.parametrize(("room", "examples"), [(LettingOut, 1), (Strongroom, 1)])
def test_any_order_of_operations_agrees_with_the_model(
    transactional_db: None, broken_store: None, room: type[LettingOut], examples: int
) -> None:
    run(room, examples=examples, steps=12, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("broken_store", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("room", [LettingOut, Strongroom])
def test_any_order_of_many_operations_agrees_with_the_model(
    transactional_db: None, broken_store: None, room: type[LettingOut]
) -> None:
    run(room, examples=30, steps=40, derandomize=False)


def run(room: type[LettingOut], *, examples: int, steps: int, derandomize: bool) -> None:
    COUNTED.clear()
    run_state_machine_as_test(
        room,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    log.info(
        "%d requests: %s", COUNTED.total(), {" ".join(map(str, key)): count for key, count in sorted(COUNTED.items(), key=repr)}
    )
