"""What has to hold after every operation, whoever won it and whatever went wrong (FAULTS)."""

from contextlib import ExitStack

from django.conf import settings
from django.db.models import Sum

from egress.models import Item
from files import deployment
from files.models import Collection, Erasure, StoredFile, Upload
from files.reading import OPEN_BODIES
from files.stores import Entry, get_store
from files.transfers import SLOTS
from tenants import audit


def check_all() -> None:
    check_objects()
    check_counts()
    check_slots()
    assert not list(audit.verify())


def check_objects() -> None:
    """INV-06: every file that is not missed has its object, of the size in its row; every object has a row that knows of it."""
    for file in StoredFile.objects.filter(status=StoredFile.Status.READY):
        assert get_store(file.store).stat(file.object_key).size == file.object_size
    known: set[tuple[str, str]] = set()
    for rows in (StoredFile.objects, Upload.objects, Erasure.objects):
        known |= set(rows.values_list("store", "object_key"))
    known |= set(Item.objects.exclude(status=Item.Status.WIPED).values_list("store", "object_key"))
    assert {(alias, entry.key) for alias, entry in entries() if not entry.key.startswith(deployment.OWN)} <= known


def check_counts() -> None:
    """INV-18: what the quota counts is what there is."""
    for collection in Collection.objects.all():
        assert collection.file_count == collection.files.count()
        assert collection.total_length == collection.files.aggregate(total=Sum("length", default=0))["total"]


def check_slots() -> None:
    """Every transfer gave its slots back, once: one more than there are would be an error when it is given back."""
    with ExitStack() as taken:
        for _ in range(settings.FILES_MAX_TRANSFERS):
            SLOTS.take()
            taken.callback(SLOTS.give_back)
        for _ in range(32):
            assert OPEN_BODIES.acquire(blocking=False)
            taken.callback(OPEN_BODIES.release)


def entries() -> list[tuple[str, Entry]]:
    """Objects, versions and unfinished uploads of every bucket, each with the bucket's alias."""
    return [(alias, entry) for alias in settings.BUCKETS for entry in get_store(alias).entries("")]
