"""Collections that are being destroyed, and the certificates of those that were."""

from typing import ClassVar
from uuid import uuid4

from django.db import models
from django.db.models import Q

from files.models import Collection
from tenants.models import Tenant
from tenants.work.leases import Leased


class Destruction(Leased):
    """The end of one collection: work while it goes on, and then the certificate that it is gone.

    It begins with the destruction of the key, so that there is no way back from here (INV-08).
    """

    class Reason(models.TextChoices):
        EXPIRED = "expired"  # its purge date is over
        DELETED = "deleted"  # somebody deleted it, and the grace is over
        ENDED = "ended"  # it held a package, which may not be fetched any more

    class Status(models.TextChoices):
        RUNNING = "running"
        BLOCKED = "blocked"  # something in the store will not go; tried again every day
        DONE = "done"

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="destructions", editable=False)
    collection = models.OneToOneField(
        Collection, models.SET_NULL, null=True, related_name="destruction", editable=False, help_text="none: its rows are gone"
    )
    # What it was, kept after its rows are gone
    collection_uuid = models.UUIDField(unique=True, editable=False)
    slug = models.CharField(max_length=80, editable=False)
    display_name = models.CharField(max_length=200, editable=False)
    file_count = models.BigIntegerField(editable=False)
    total_length = models.BigIntegerField(editable=False, help_text="plaintext bytes")
    unencrypted_count = models.BigIntegerField(editable=False, help_text="files that were kept without encryption")

    number = models.BigIntegerField(unique=True, editable=False, help_text="of its entry in the ledger")
    ledgered_at = models.DateTimeField(null=True, editable=False, help_text="since when the entry is in the vault")
    reason = models.CharField(max_length=10, choices=Reason, editable=False)
    due_at = models.DateTimeField(editable=False, help_text="when its purge date, or its grace, was over")
    started_at = models.DateTimeField(editable=False, help_text="its key was destroyed: nobody can read it from here on")
    began_by = models.CharField(max_length=150, editable=False, help_text="username, or system")
    status = models.CharField(max_length=10, choices=Status, default=Status.RUNNING, editable=False)
    blocked_by = models.CharField(max_length=500, blank=True, editable=False, help_text="what the store said")
    completed_at = models.DateTimeField(null=True, editable=False)
    certificate = models.TextField(blank=True, editable=False, help_text="canonical JSON, exactly as it is signed")
    signature = models.CharField(max_length=100, blank=True, editable=False, help_text="Ed25519, base64")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(status="done", completed_at__isnull=False, collection=None) & ~Q(certificate="")
                | Q(status__in=["running", "blocked"], completed_at=None, certificate=""),
                name="destruction_done_has_a_certificate",
            ),
            models.CheckConstraint(
                condition=Q(status="blocked") & ~Q(blocked_by="") | ~Q(status="blocked"), name="destruction_blocked_says_by_what"
            ),
        ]
        indexes: ClassVar = [models.Index("tenant", "started_at", "id", name="destruction_in_tenant_by_age")]

    def __str__(self) -> str:
        return f"destruction of {self.slug}"


class Shard(Leased):
    """One part of the objects, by the beginning of their keys. Several workers share a large destruction."""

    destruction = models.ForeignKey(Destruction, models.CASCADE, related_name="shards")
    store = models.CharField(max_length=50, help_text="STORAGES alias")
    prefix = models.CharField(max_length=200)
    erased = models.BigIntegerField(default=0, help_text="objects, old versions, delete markers and unfinished uploads")
    verified_at = models.DateTimeField(null=True, help_text="a listing found nothing any more")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("destruction", "store", "prefix", name="shard_once_per_destruction"),
        ]

    def __str__(self) -> str:
        return f"{self.store}:{self.prefix}"
