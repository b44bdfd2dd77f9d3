"""Compares the API with a model of it: operations in any order, some of them interrupted, with all invariants checked after each.

INV-01..INV-13, INV-15..INV-20. After an interruption either the old or the new state is correct; a GET decides which one applies
from then on. Users of both tenants attempt every operation, so that outsiders, members without the right and anonymous clients
attempt it, too.
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
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR, InlineExecutor
from tests.faults.model.base import EQUIVALENT_NAMES, REQUEST_COUNTS, TITLES, Fault
from tests.faults.model.egress_rules import DAY, EgressRules
from tests.faults.model.machine import StrongroomMachine
from vault.stores import ensure_buckets


pytestmark = pytest.mark.both_databases
log = logging.getLogger(__name__)


@pytest.fixture(params=["local", "s3"])
def faulty_store(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Every bucket with fault injection. Retries do not sleep, and uploads record a heartbeat with every piece."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(uploads, "HEARTBEAT_SECONDS", -1)
    monkeypatch.setattr(staging, "ThreadPoolExecutor", InlineExecutor)  # calls to the store keep their order
    monkeypatch.setattr(jobs, "TICK_SECONDS", 600.0)  # a tick finishes all work on a busy machine, too
    with ExitStack() as stack:
        if request.param == "s3":
            stack.enter_context(stores.use_new_buckets(stores.moto(), settings))
        backend = {"local": "FaultyLocalStore", "s3": "FaultyS3Store"}[request.param]
        settings.STORAGES = settings.STORAGES | {
            alias: {
                "BACKEND": f"tests.faults.fault_injection.{backend}",
                "OPTIONS": settings.STORAGES[alias]["OPTIONS"] if request.param == "s3" else {"location": str(tmp_path / alias)},
            }
            for alias in settings.BUCKETS
        }
        ensure_buckets()
        yield


OLD, NEW, LAST = EQUIVALENT_NAMES[0][0], EQUIVALENT_NAMES[1][0], EQUIVALENT_NAMES[3][0]
BODY = b"canary" * 20
# `m` is the machine, `c` the number of a collection with the file OLD.
OPERATIONS: dict[str, Callable[[StrongroomMachine, int, Fault], object]] = {
    "put": lambda m, c, fault: m.put("bob", c, NEW, BODY, "none", fault, is_chunked=False),
    "replace": lambda m, c, fault: m.put("bob", c, OLD, BODY, "fresh", fault, is_chunked=True),
    "form": lambda m, c, fault: m.post_form("bob", c, [(NEW, BODY)], fault, is_named=False),
    "forms": lambda m, c, fault: m.post_form("bob", c, [(NEW, BODY), (LAST, b"")], fault, is_named=True),
    "delete": lambda m, c, fault: m.delete_file("bob", c, OLD, "none", fault),
    "rename": lambda m, c, fault: m.rename("bob", c, OLD, NEW, fault),
    "read": lambda m, c, fault: m.read("bob", c, OLD, paths.content, fault),
    "archive": lambda m, c, fault: m.archive("bob", c, [], fault),
    "link": lambda m, c, fault: m.use_link(m.mint("bob", c, OLD, None), "get", fault),
    "clean-up": lambda m, c, fault: (m.delete_file("bob", c, OLD, "none", None), m.tick(0, fault)),
    "rotate": lambda m, c, fault: m.rotate(2, fault),
    "purge": lambda m, c, fault: (m.delete_collection("alice", c, None), m.purge(fault)),
    "submit": lambda m, c, fault: m.submit("bob", c, None, fault),
    "stage": lambda m, c, fault: (m.make_request(c, steps=0), m.run_egress_jobs(0, fault)),
    "staged": lambda m, c, fault: m.read_item("grace", m.make_request(c, steps=1), 0, fault),
    "decide": lambda m, c, fault: m.decide("grace", m.make_request(c, steps=1), "approve", fault),
    "approve": lambda m, c, fault: m.decide("ruth", m.make_request(c, steps=2), "approve", fault),
    "reject": lambda m, c, fault: m.decide("grace", m.make_request(c, steps=1), "reject", fault),
    "wipe": lambda m, c, fault: (m.decide("grace", m.make_request(c, steps=1), "reject", None), m.run_egress_jobs(0, fault)),
    "return": lambda m, c, fault: m.decide("grace", m.make_request(c, steps=1), "return", fault),
    "resubmit": lambda m, c, fault: m.resubmit("bob", m.make_returned_request(c), None, fault),
    "withdraw": lambda m, c, fault: m.withdraw("bob", m.make_request(c, steps=1), fault),
    "package": lambda m, c, fault: (m.make_request(c, steps=3), m.run_egress_jobs(0, fault)),
    "void": lambda m, c, fault: (m.make_request(c, steps=3), m.change_role("ruth", "member"), m.run_egress_jobs(0, fault)),
    "fail": lambda m, c, fault: m.make_failed_request(c, fault),
    "retry": lambda m, c, fault: m.retry("root", m.make_failed_request(c, None), fault),
    "fetch": lambda m, c, fault: m.download_package("bob", m.make_request(c, steps=4), "whole", fault),
    "resume": lambda m, c, fault: m.download_package("bob", m.make_request(c, steps=5), "rest", fault),
    "fetch-by-link": lambda m, c, fault: m.download_package_by_link("bob", m.make_request(c, steps=4), fault),
    "revoke": lambda m, c, fault: m.revoke("alice", m.make_request(c, steps=4), fault),
    "extend": lambda m, c, fault: m.extend("ruth", m.make_request(c, steps=4), fault),
    "expire": lambda m, c, fault: (m.make_request(c, steps=1), m.run_egress_jobs(22 * DAY, fault)),
    "close": lambda m, c, fault: (m.make_request(c, steps=4), m.run_egress_jobs(8 * DAY, fault)),
    "destroy": lambda m, c, fault: (m.revoke("alice", m.make_request(c, steps=4), None), m.purge(fault)),
}  # fmt: skip


def interrupt_at_each_call(operation: str, kind: str, *, step: int) -> int:
    """Runs the operation with a fault at its first call to store or database, then `step` calls later, and so on.

    Ends with the first run that completes before its fault, and returns the number of that call.
    """
    for call_number in itertools.count(1, step):
        machine = StrongroomMachine()
        try:
            collection: Any = machine.create("alice", "acme", TITLES[0], "AES-GCM", None)
            machine.put("alice", collection, OLD, b"canary" * 30, "none", None, is_chunked=False)
            machine.agrees()
            OPERATIONS[operation](machine, collection, (call_number, kind))
            is_complete = not INJECTOR.has_fired
            machine.assert_all_invariants()
            if machine.requests:
                machine.take_over_interrupted_work()
                machine.assert_all_invariants()
            if is_complete:
                machine.finish_all_requests()
                return call_number
        finally:
            machine.teardown()
    raise AssertionError("unreachable: itertools.count does not end")


@pytest.mark.parametrize("faulty_store", ["local"], indirect=True)
def test_upload_interrupted_is_complete_or_absent(transactional_db: None, faulty_store: None) -> None:
    """F-14, F-22, F-24."""
    assert interrupt_at_each_call("put", "killed", step=20) > 20


@pytest.mark.parametrize("faulty_store", ["local"], indirect=True)
def test_packaging_interrupted_is_complete_or_resumed(transactional_db: None, faulty_store: None) -> None:
    """F-22, F-27."""
    assert interrupt_at_each_call("package", "killed-after", step=200) > 20


@pytest.mark.long
@pytest.mark.timeout(1_800)  # packaging makes hundreds of calls
@pytest.mark.parametrize("faulty_store", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("kind", FAULT_KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_interrupted_at_each_call_is_complete_or_absent(
    transactional_db: None, faulty_store: None, operation: str, kind: str
) -> None:
    assert interrupt_at_each_call(operation, kind, step=1) > 5


@pytest.mark.parametrize("faulty_store", ["local"], indirect=True)
@pytest.mark.parametrize(("machine", "examples"), [(EgressRules, 1), (StrongroomMachine, 1)])
def test_any_order_of_operations_agrees_with_the_model(
    transactional_db: None, faulty_store: None, machine: type[EgressRules], examples: int
) -> None:
    run(machine, examples=examples, steps=12, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("faulty_store", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("machine", [EgressRules, StrongroomMachine])
def test_any_order_of_many_operations_agrees_with_the_model(
    transactional_db: None, faulty_store: None, machine: type[EgressRules]
) -> None:
    run(machine, examples=30, steps=40, derandomize=False)


def run(machine: type[EgressRules], *, examples: int, steps: int, derandomize: bool) -> None:
    REQUEST_COUNTS.clear()
    run_state_machine_as_test(
        machine,
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
    counts = {" ".join(map(str, key)): count for key, count in sorted(REQUEST_COUNTS.items(), key=repr)}
    log.info("%d requests: %s", REQUEST_COUNTS.total(), counts)
