"""Checks of the invariants that hold after every operation, whatever failed and whichever contender won (docs/faults.md)."""

from contextlib import ExitStack

from django.conf import settings
from django.db.models import Sum

from egress.models import Contributor, Decision, EgressRequest, StagedFile
from egress.states import PINNING
from files.http.streaming import SLOTS
from files.models import Collection, Hold, PendingDeletion, StoredFile, Upload
from tenants import audit
from vault import identity
from vault.content_reader import OPEN_BODIES
from vault.stores import StoreEntry, get_store


def check_all() -> None:
    check_objects()
    check_counts()
    check_egress()
    check_slots()
    assert not list(audit.verify())


def check_objects() -> None:
    """INV-06: every ready file has its object, of the size in its row, and a row refers to every object."""
    for file in StoredFile.objects.filter(status=StoredFile.Status.READY):
        assert get_store(file.store).stat(file.object_key).size == file.object_size
    known: set[tuple[str, str]] = set()
    for rows in (StoredFile.objects, Upload.objects, PendingDeletion.objects):
        known |= set(rows.values_list("store", "object_key"))
    known |= set(StagedFile.objects.exclude(status=StagedFile.Status.WIPED).values_list("store", "object_key"))
    assert {(alias, entry.key) for alias, entry in entries() if not entry.key.startswith(identity.SYSTEM_PREFIX)} <= known


def check_counts() -> None:
    """INV-18: the counters of the quota match the stored files."""
    for collection in Collection.objects.all():
        assert collection.file_count == collection.files.count()
        assert collection.total_length == collection.files.aggregate(total=Sum("length", default=0))["total"]


def check_egress() -> None:
    """INV-10, INV-11, INV-13, in the rows: requested files stay unchanged, and a request has at most one package."""
    for request in EgressRequest.objects.all():
        holds = Hold.objects.filter(kind=Hold.Kind.EGRESS, ref=str(request.pk))
        kept = request.items.exclude(status__in=[StagedFile.Status.WIPING, StagedFile.Status.WIPED]).select_related("file")
        if request.status not in PINNING:
            assert not kept.exists()
            assert not holds.exists()
        else:
            assert kept.count() == kept.filter(round=request.round).count() == request.file_count
            assert set(holds.values_list("file", flat=True)) == set(kept.values_list("file", flat=True))
        for item in kept:
            file = item.file
            assert file is not None
            assert (item.object_id, item.sha256, item.filename) == (file.object_id, file.sha256, file.filename)
        assert request.downloads.count() == request.download_count <= request.max_downloads
        check_release(request)


def check_release(request: EgressRequest) -> None:
    """INV-10: a package requires an approval at every stage, each by another reviewer who did not contribute to the request."""
    packages = StoredFile.objects.filter(collection__package_of=request)
    releases = request.steps.filter(to_status="released").exclude(from_status="released").count()  # without extensions
    assert releases == (request.released_at is not None)
    assert packages.count() <= releases
    if not releases:
        return
    this_round = {"request": request, "round": request.round}
    decisions = Decision.objects.filter(voided_at=None, content_sha256=request.content_sha256, verdict="approve", **this_round)
    deciders = set(decisions.values_list("by", flat=True))
    assert len(deciders) == decisions.count() == request.stage_count
    assert not deciders & {request.requester_id, *Contributor.objects.filter(**this_round).values_list("user", flat=True)}
    for package in packages:
        assert (package.sha256, package.length) == (request.package_sha256, request.package_length)


def check_slots() -> None:
    """INV-19: every transfer has released its slots exactly once. A surplus release raises an error at the release."""
    with ExitStack() as taken:
        for _ in range(settings.FILES_MAX_TRANSFERS):
            SLOTS.take()
            taken.callback(SLOTS.release)
        for _ in range(32):
            assert OPEN_BODIES.acquire(blocking=False)
            taken.callback(OPEN_BODIES.release)


def entries() -> list[tuple[str, StoreEntry]]:
    """Returns the objects, versions and unfinished uploads of every bucket, each with the bucket's alias."""
    return [(alias, entry) for alias in settings.BUCKETS for entry in get_store(alias).entries("")]
