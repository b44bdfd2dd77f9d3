"""What nobody goes on with ends by itself, and nothing of it is left in staging; what it is about is destroyed later (F-57)."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from egress import jobs
from egress.models import EgressRequest, StagedFile
from egress.states import OPEN, State
from files.models import Collection, Hold
from tests.services.egress import decide, row
from tests.services.egress_world import STARTS, World, make_world, work_on
from tests.worlds import starts_from
from vault.stores import get_store


pytestmark = [pytest.mark.django_db, starts_from(make_world)]
SECOND = timedelta(seconds=1)
ABANDONED = [start for start, state in STARTS.items() if state in OPEN]


def copies(request: Any) -> list[str]:
    """Keys in staging, as a listing has them."""
    wanted = set(StagedFile.objects.filter(request=request["id"]).values_list("object_key", flat=True))
    return [entry.key for entry in get_store("staging").entries("") if entry.key in wanted]


def wait_until(moment: datetime) -> None:
    """A tick, and what follows from it."""
    with time_machine.travel(moment, tick=True):
        jobs.tick(now=moment)
        work_on()


def deadline(request: Any) -> datetime:
    at = row(request).expires_at
    assert at
    return at


# --- Requests ---


@pytest.mark.parametrize("start", ABANDONED)
def test_abandoned_request_leaves_by_itself(world: World, start: str) -> None:
    """At its deadline and not before. What was approved fails first, so that an operator hears of it, and then it ends, too."""
    request = world.requests[start]
    before = row(request)
    wait_until(deadline(request) - SECOND)
    assert row(request).status == before.status or (before.status, row(request).status) == ("submitted", "in_review")
    for _ in range(2):
        if row(request).status in OPEN:
            wait_until(deadline(request))
    found = row(request)
    assert (found.status, found.expires_at) == ("expired", None)
    ends = list(found.steps.order_by("number").values_list("to_status", "by_name"))
    assert ends[-1] == ("expired", "system")
    if start == "approved":
        assert ends[-2] == ("failed", "system")
    assert copies(request) == []
    items = found.items.all()
    assert all((item.status, item.file_id) == ("wiped", None) and item.wiped_at for item in items)
    assert not Hold.objects.filter(ref=str(found.pk)).exists()
    assert Collection.objects.get(uuid=found.collection_uuid).egress_status == "none"


def test_step_that_somebody_took_moves_the_deadline(world: World) -> None:
    request = world.requests["second stage"]
    first = deadline(request)
    jobs.end_expired(now=first - SECOND)
    assert row(request).status == "in_review"
    assert decide(world.clients["ruth"], request, "return").status_code == 201
    assert deadline(request) > first
    jobs.end_expired(now=first)
    assert row(request).status == "returned"


@pytest.mark.parametrize("start", [start for start, state in STARTS.items() if state not in {*OPEN, State.RELEASED}])
def test_what_has_ended_stays_so(world: World, start: str) -> None:
    before = EgressRequest.objects.filter(pk=world.requests[start]["id"]).values().get()
    assert before["expires_at"] is None
    wait_until(timezone.now() + timedelta(days=4000))
    assert EgressRequest.objects.filter(pk=world.requests[start]["id"]).values().get() == before
