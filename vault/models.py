"""Models of the vault: wrapped data keys, and the identity of the deployment."""

from typing import ClassVar
from uuid import uuid4

from django.db import models
from django.db.models import Q

from vault import crypto


class Cipher(models.TextChoices):
    AES_GCM = crypto.AES_GCM, "AES-GCM"
    NONE = crypto.NONE, "None"


class Key(models.Model):
    """A random 32-byte key, wrapped by a named master key of the keyring. A destroyed key is a row without its wrapping."""

    class Purpose(models.TextChoices):
        COLLECTION = "collection"
        AUDIT = "audit"  # the seed that signs audit checkpoints, ledger entries and certificates
        EGRESS = "egress"  # the seed that signs release manifests

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    purpose = models.CharField(max_length=20, choices=Purpose)
    owner = models.CharField(max_length=80, help_text="tenant uuid/collection uuid, or `deployment`; the wrapping is bound to it")
    kek_id = models.CharField(max_length=64, db_index=True, help_text="name of the key-encryption key in the keyring")
    wrapped = models.BinaryField(null=True)
    created_at = models.DateTimeField()
    destroyed_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("purpose", "owner", name="key_one_per_owner"),
            models.CheckConstraint(
                condition=Q(wrapped__isnull=False, destroyed_at__isnull=True)
                | Q(wrapped__isnull=True, destroyed_at__isnull=False),
                name="key_destroyed_has_no_wrapping",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} key {self.id}"


class Deployment(models.Model):
    """The identity of this database: a single row. The mark in its vault has the same UUID."""

    uuid = models.UUIDField(default=uuid4, editable=False)
    marked_at = models.DateTimeField(null=True, editable=False, help_text="when its vault was marked")
    ledger_number = models.BigIntegerField(default=0, editable=False, help_text="number of the last destruction")
    lost_until = models.CharField(
        max_length=200,
        blank=True,
        editable=False,
        help_text="an operator accepts that events up to this audit checkpoint are lost",
    )

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(id=1), name="deployment_is_one")]

    def __str__(self) -> str:
        return str(self.uuid)
