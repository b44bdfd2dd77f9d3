"""Copies to staging: while the store takes its time, when one comes late, and when there is nothing to copy any more.

INV-07; F-10, F-27.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from threading import Event, Thread
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from egress import jobs, staging
from egress.models import EgressRequest, StagedFile
from files.models import StoredFile
from tenants.models import AuditEvent, Tenant, User
from tests.live.waiting import wait_for
from tests.services.egress import Api, assert_wiped, fill, go_on, make_reviewers, path, row, see, submit, work_on
from vault.stores import get_store
from vault.stores.local import LocalStore


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


class Gate:
    """Holds a store's copies up until somebody lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = Event(), Event()
        copy = LocalStore.copy

        def held_up(store: LocalStore, *given: Any, **more: Any) -> Any:
            self.begun.set()
            assert self.open.wait(30)
            return copy(store, *given, **more)

        monkeypatch.setattr(LocalStore, "copy", held_up)


def in_thread(do: Callable[[], object]) -> Thread:
    def run() -> None:
        try:
            do()
        finally:
            connection.close()

    thread = Thread(target=run)
    thread.start()
    return thread


def test_worker_whose_copy_takes_long_is_alive_and_nobody_wipes_behind_it(
    api: Api, bob: User, people: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-07: a listing that finds nothing means that nothing will come."""
    monkeypatch.setattr(staging, "HEARTBEAT_SECONDS", 0.05)
    gate, request = Gate(monkeypatch), submit(api(bob), fill(api(bob), files={"a.csv": b"a"}))
    worker = in_thread(partial(jobs.process_copies, now=timezone.now(), until=float("inf")))
    assert gate.begun.wait(10)
    assert api(bob).post(path(request, "withdraw/"), {}).status_code == 200
    first = row(request).lease_at
    wait_for(lambda: row(request).lease_at != first)
    assert not jobs.process_copies(now=timezone.now(), until=float("inf"))
    assert StagedFile.objects.get(request=request["id"]).status == "wiping"
    gate.open.set()
    worker.join(30)
    work_on()
    assert_wiped(request)


def test_copy_that_came_behind_its_tombstone_is_erased(
    api: Api, bob: User, people: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker could not show a sign of life for six minutes, another has wiped meanwhile, and then the store is done."""
    gate, request = Gate(monkeypatch), submit(api(bob), fill(api(bob), files={"a.csv": b"a"}))
    worker = in_thread(partial(jobs.process_copies, now=timezone.now(), until=float("inf")))
    assert gate.begun.wait(10)
    assert api(bob).post(path(request, "withdraw/"), {}).status_code == 200
    EgressRequest.objects.update(lease_at=timezone.now() - timedelta(minutes=6))
    work_on()
    assert_wiped(request)
    gate.open.set()
    worker.join(30)
    assert_wiped(request)


def test_large_request_takes_turns_with_others(
    api: Api, bob: User, people: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick copies a piece of one. The next is another's, and somebody who came later is not kept waiting for all of it."""
    monkeypatch.setattr(staging, "COPY_THREADS", 1)
    large = submit(api(bob), fill(api(bob), "Large", files={f"{number}.csv": b"a" for number in range(5)}))
    small = submit(api(bob), fill(api(bob), "Small", files={"a.csv": b"a"}))
    for _ in range(4):
        assert jobs.process_copies(now=timezone.now(), until=0)
    assert (row(large).status, row(small).status) == ("submitted", "in_review")


def test_lost_file_is_on_record_and_said_on_the_request(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-10: nobody waits without knowing for what. Put back, it goes on."""
    request = submit(api(bob), fill(api(bob)))
    file = StoredFile.objects.get(filename="a.csv")
    store = get_store(file.store)
    assert isinstance(store, LocalStore)
    away = (store.root / file.object_key).rename(store.root.parent / "away")
    for minutes in (0, 6, 12):
        go_on(minutes)
    assert row(request).status == "submitted"
    assert "is missing from the storage" in see(api(bob), request)["problem"]
    file.refresh_from_db()
    assert file.status == "missing"
    assert AuditEvent.objects.filter(action="file.missing", target_id=str(file.uuid)).count() == 1
    away.rename(store.root / file.object_key)
    go_on(18)
    assert (row(request).status, row(request).problem) == ("in_review", "")
