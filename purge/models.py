"""Destructions of collections, and the certificates that remain of them."""

from typing import ClassVar
from uuid import uuid4

from django.db import models
from django.db.models import Q

from files.models import Collection
from tenants.models import Tenant
from tenants.work.leases import Leased


class Destruction(Leased):
    """The destruction of one collection: first a unit of work for the workers, then the record that holds the certificate.

    The row is created in the transaction that destroys the key, so a destruction cannot be cancelled (INV-08).
    """

    class Reason(models.TextChoices):
        EXPIRED = "expired"  # its purge date has passed
        DELETED = "deleted"  # a user deleted it, and the grace period has ended
        ENDED = "ended"  # it contained an egress package that can no longer be downloaded

    class Status(models.TextChoices):
        RUNNING = "running"
        BLOCKED = "blocked"  # the store refuses a deletion; retried every day
        DONE = "done"

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="destructions", editable=False)
    collection = models.OneToOneField(
        Collection,
        models.SET_NULL,
        null=True,
        related_name="destruction",
        editable=False,
        help_text="null once its rows are deleted",
    )
    # A copy of the collection's data, which remains after its rows are deleted
    collection_uuid = models.UUIDField(unique=True, editable=False)
    slug = models.CharField(max_length=80, editable=False)
    display_name = models.CharField(max_length=200, editable=False)
    file_count = models.BigIntegerField(editable=False)
    total_length = models.BigIntegerField(editable=False, help_text="plaintext bytes")
    unencrypted_count = models.BigIntegerField(editable=False, help_text="files that were stored without encryption")

    number = models.BigIntegerField(unique=True, editable=False, help_text="number of its ledger entry")
    ledgered_at = models.DateTimeField(null=True, editable=False, help_text="when its ledger entry was written to the vault")
    reason = models.CharField(max_length=10, choices=Reason, editable=False)
    due_at = models.DateTimeField(editable=False, help_text="when its purge date passed or its grace period ended")
    started_at = models.DateTimeField(editable=False, help_text="when its key was destroyed; its content is unreadable since")
    started_by = models.CharField(max_length=150, editable=False, help_text="a username, or `system`")
    status = models.CharField(max_length=10, choices=Status, default=Status.RUNNING, editable=False)
    blocked_by = models.CharField(
        max_length=500, blank=True, editable=False, help_text="the store's reason for refusing a deletion"
    )
    completed_at = models.DateTimeField(null=True, editable=False)
    certificate = models.TextField(blank=True, editable=False, help_text="canonical JSON, exactly as signed")
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
    """The objects of a destruction in one store under one key prefix. Several workers share the shards of a large destruction."""

    destruction = models.ForeignKey(Destruction, models.CASCADE, related_name="shards")
    store = models.CharField(max_length=50, help_text="STORAGES alias")
    prefix = models.CharField(max_length=200)
    erased = models.BigIntegerField(default=0, help_text="objects, old versions, delete markers and unfinished uploads")
    verified_at = models.DateTimeField(null=True, help_text="when a listing found no object")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("destruction", "store", "prefix", name="shard_once_per_destruction"),
        ]

    def __str__(self) -> str:
        return f"{self.store}:{self.prefix}"
