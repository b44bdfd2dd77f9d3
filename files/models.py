"""Encrypted collections and their files, access grants, holds, uploads, pending deletions and one-off links."""

import hashlib
from typing import ClassVar
from uuid import UUID, uuid4

from django.conf import settings
from django.core.files import File
from django.db import models
from django.db.models import Q

from tenants.models import ApiKey, Membership, Tenant
from tenants.work.leases import Leased
from vault import content, crypto
from vault.models import Cipher, Key


class Collection(models.Model):
    class Kind(models.TextChoices):
        FILES = "files"
        RELEASE = "release"  # has one egress package; not visible to users

    class Status(models.TextChoices):
        OPEN = "open"
        DELETED = "deleted"  # not readable; can be restored during the grace period
        PURGING = "purging"
        BLOCKED = "blocked"

    class EgressStatus(models.TextChoices):
        NONE = "none"
        PROCESSING = "processing"
        PROCESSED = "processed"
        PENDING = "pending"

    uuid = models.UUIDField(unique=True, default=uuid4, editable=False)
    slug = models.CharField(max_length=80, unique=True, editable=False, help_text="the id in the API; never changes")
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="collections")
    display_name = models.CharField(max_length=200)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.FILES, editable=False)
    status = models.CharField(max_length=10, choices=Status, default=Status.OPEN, editable=False)
    egress_status = models.CharField(max_length=10, choices=EgressStatus, default=EgressStatus.NONE, editable=False)
    cipher = models.CharField(max_length=10, choices=Cipher, help_text="for new files")
    key = models.OneToOneField(Key, models.PROTECT, related_name="+", editable=False)
    purge_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(editable=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", editable=False)
    deleted_at = models.DateTimeField(null=True, editable=False)
    # Updated by each service that adds or removes a file, under the row lock of the collection.
    file_count = models.BigIntegerField(default=0, editable=False)
    total_length = models.BigIntegerField(default=0, editable=False)

    # Annotated by files.access, through which all code loads collections for a user.
    my_level: int
    is_held: bool = False  # whether the collection or one of its files is under a hold

    class Meta:
        constraints: ClassVar = [
            # Collections that users cannot see do not compete for names with those that they can see.
            models.UniqueConstraint("tenant", "display_name", condition=Q(kind="files"), name="collection_name_unique_in_tenant"),
            models.CheckConstraint(condition=Q(file_count__gte=0, total_length__gte=0), name="collection_counts_not_negative"),
            models.CheckConstraint(
                condition=Q(status="open", deleted_at__isnull=True)
                | Q(status="deleted", deleted_at__isnull=False)
                | Q(status__in=["purging", "blocked"]),
                name="collection_deleted_has_a_time",
            ),
        ]
        indexes: ClassVar = [
            models.Index("tenant", "created_at", "id", name="collection_in_tenant_by_age"),
            models.Index("deleted_at", condition=Q(status="deleted"), name="collection_deleted_by_time"),
            models.Index("purge_at", condition=Q(status__in=["open", "deleted"]), name="collection_to_expire_by_time"),
        ]

    def __str__(self) -> str:
        return self.slug

    @property
    def key_owner(self) -> str:
        return f"{self.tenant_id}/{self.uuid}"

    @property
    def prefix(self) -> str:
        """The prefix of its object keys. Contains no user text. Its first part distributes collections evenly over the store."""
        spread = hashlib.sha256(str(self.uuid).encode()).hexdigest()[:4]
        return f"{spread}/{self.tenant_id}/{self.uuid}/"

    def object_key(self, object_id: UUID) -> str:
        return f"{self.prefix}{object_id}"


class StoredFile(models.Model):
    class Status(models.TextChoices):
        READY = "ready"
        MISSING = "missing"  # the store has lost the object; an operator must act
        DELETING = "deleting"

    uuid = models.UUIDField(unique=True, default=uuid4, editable=False)
    collection = models.ForeignKey(Collection, models.PROTECT, related_name="files")
    filename = models.CharField(max_length=255, help_text="unchanged, as the client sent it")
    name_key = models.CharField(max_length=1024, editable=False, help_text="NFC(casefold(NFC(filename)))")
    content_type = models.CharField(max_length=127)
    notes = models.TextField(blank=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.READY, editable=False)
    length = models.BigIntegerField(help_text="plaintext bytes", editable=False)
    sha256 = models.CharField(max_length=64, help_text="SHA-256 of the plaintext, in hex", editable=False)
    created_at = models.DateTimeField(editable=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", editable=False)
    updated_at = models.DateTimeField(editable=False, help_text="last change of the content")
    updated_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", editable=False)
    keep_until = models.DateTimeField(
        null=True, blank=True, help_text="when the file is purged; empty: when its collection is purged"
    )
    # The content. Replacing it replaces all of these fields. The cipher of a row is final.
    cipher = models.CharField(max_length=10, choices=Cipher, editable=False)
    segment_size = models.PositiveIntegerField(editable=False, help_text="size of a full segment in ciphertext bytes")
    store = models.CharField(max_length=50, editable=False, help_text="STORAGES alias of the store that has the object")
    object_id = models.UUIDField(unique=True, editable=False)
    object_key = models.CharField(max_length=200, unique=True, editable=False)
    object_size = models.BigIntegerField(editable=False)
    object_etag = models.CharField(max_length=200, editable=False, help_text="ETag that the store gave the object, for If-Match")
    header = models.BinaryField(editable=False)
    key_salt = models.BinaryField(editable=False, help_text="only stored here: without it the object cannot be decrypted")
    key_commitment = models.BinaryField(editable=False)

    my_level: int = 0  # annotated by files.access
    is_held: bool = False  # whether the file or its whole collection is under a hold

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("collection", "name_key", name="file_name_unique_in_collection"),
            models.CheckConstraint(condition=Q(length__gte=0, object_size__gte=0), name="file_sizes_not_negative"),
        ]
        indexes: ClassVar = [
            models.Index("collection", "created_at", "id", name="file_in_collection_by_age"),
            models.Index("keep_until", condition=Q(keep_until__isnull=False), name="file_to_expire_by_time"),
        ]

    def __str__(self) -> str:
        return str(self.uuid)

    @property
    def etag(self) -> str:
        """A strong entity tag that changes with the content and is not derived from the plaintext (RFC 9110, section 8.8.3)."""
        return f'"{self.object_id.hex}"'

    def open(self) -> "File[bytes]":
        """The plaintext as a read-only, seekable Django File that decrypts while it is read. The caller must check access.

        Raises: KeyUnavailable, WrongKey, CorruptObject, ForeignVault, DatabaseRestored, StorageUnavailable; reading it also
        raises FileNotFoundError and StoreError.
        """
        return content.PlaintextFile(content.stored_content(self), name=self.filename)

    @property
    def data_key(self) -> Key:
        """Part of the protocol `vault.content.ContentRow`, like `binding`."""
        return self.collection.key

    @property
    def binding(self) -> crypto.Binding:
        collection = self.collection
        return crypto.Binding(str(collection.tenant_id), str(collection.uuid), str(self.uuid), str(self.object_id))

    @property
    def layout(self) -> crypto.Layout:
        return crypto.layout_of(self.cipher, length=self.length, segment_size=self.segment_size)


class Level(models.IntegerChoices):
    """What a user can do with a collection or a file. Each level includes the lower ones. Grants can only give the last three."""

    NAME = 1, "name"  # on a collection: sees its name and those of its files that grants give access to
    METADATA = 2, "metadata"  # sees everything except content; the level of auditors
    VIEWER = 3, "viewer"
    EDITOR = 4, "editor"
    MANAGER = 5, "manager"


GRANTABLE_LEVELS = (Level.VIEWER, Level.EDITOR, Level.MANAGER)


class Grant(models.Model):
    """Gives a user or all members of the tenant a level on a collection or on one file of it."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="+", editable=False, help_text="tenant of the collection")
    collection = models.ForeignKey(Collection, models.CASCADE, related_name="grants")
    file = models.ForeignKey(
        StoredFile, models.CASCADE, null=True, blank=True, related_name="grants", help_text="empty: all files"
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, blank=True, related_name="grants", help_text="empty: all members"
    )
    membership = models.ForeignKey(
        Membership,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="membership of the user; deleting it deletes the grant; empty: all members, or a user of another tenant",
    )
    level = models.PositiveSmallIntegerField(choices=[(level.value, level.label) for level in GRANTABLE_LEVELS])
    created_at = models.DateTimeField(editable=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                "collection", "user", condition=Q(file=None, user__isnull=False), name="grant_one_per_person_and_collection"
            ),
            models.UniqueConstraint("collection", condition=Q(file=None, user=None), name="grant_one_for_all_on_a_collection"),
            models.UniqueConstraint(
                "file", "user", condition=Q(file__isnull=False, user__isnull=False), name="grant_one_per_person_and_file"
            ),
            models.UniqueConstraint("file", condition=Q(file__isnull=False, user=None), name="grant_one_for_all_on_a_file"),
            models.CheckConstraint(condition=Q(user__isnull=False) | Q(membership=None), name="grant_to_all_has_no_membership"),
            models.CheckConstraint(condition=Q(level__in=GRANTABLE_LEVELS), name="grant_level_can_be_granted"),
        ]
        indexes: ClassVar = [
            models.Index("user", "collection", "file", "level", name="grant_of_a_person"),
            models.Index("collection", "created_at", "id", name="grant_in_collection_by_age"),
            models.Index("tenant", "created_at", "id", name="grant_in_tenant_by_age"),
        ]

    def __str__(self) -> str:
        return f"grant {self.pk}"

    @property
    def is_for_everyone(self) -> bool:
        return self.user_id is None

    @property
    def is_external(self) -> bool:
        """Whether the grant is to a user who is not a member of the tenant."""
        return self.user_id is not None and self.membership_id is None


class Hold(models.Model):
    """Prevents the modification and deletion of a collection or of one of its files.

    New files can be added to a collection under a hold. The hold applies to them, too.
    """

    class Kind(models.TextChoices):
        LEGAL = "legal"  # an admin of the tenant places and lifts it
        EGRESS = "egress"  # an egress request holds the files that it requests

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    collection = models.ForeignKey(Collection, models.PROTECT, related_name="holds")
    file = models.ForeignKey(
        StoredFile, models.PROTECT, null=True, blank=True, related_name="holds", help_text="empty: all files"
    )
    kind = models.CharField(max_length=10, choices=Kind)
    ref = models.CharField(
        max_length=200, blank=True, help_text="reference number of a legal matter, or UUID of the egress request"
    )
    reason = models.CharField(max_length=1000)
    placed_at = models.DateTimeField(editable=False)
    placed_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", editable=False)

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=~Q(reason=""), name="hold_has_a_reason")]
        indexes: ClassVar = [models.Index("collection", "placed_at", "id", name="hold_in_collection_by_age")]

    def __str__(self) -> str:
        return f"{self.kind} hold {self.pk}"


class Upload(models.Model):
    """An upload in progress. The row is created before the first byte reaches the store, and deleted when the upload ends.

    The commit, a failed upload and the clean-up compete to delete the row. The one that deletes it decides what happens to the
    object.
    """

    STALLED_AFTER_SECONDS: ClassVar = 15 * 60

    store = models.CharField(max_length=50, help_text="STORAGES alias")
    object_id = models.UUIDField(unique=True)
    object_key = models.CharField(max_length=200, unique=True)
    collection = models.ForeignKey(Collection, models.PROTECT, related_name="uploads")
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, related_name="+", help_text="empty: the system"
    )
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return str(self.object_id)


class PendingDeletion(Leased):
    """An object that no file uses. A tick deletes all of its versions and then this row."""

    store = models.CharField(max_length=50, help_text="STORAGES alias")
    object_key = models.CharField(max_length=200, unique=True)
    due_at = models.DateTimeField(
        db_index=True, help_text="later for a replaced file, because running downloads may still read the object"
    )
    requested_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.object_key


class DownloadLink(models.Model):
    """Allows one download of one file or archive without any other credential."""

    class Disposition(models.TextChoices):
        ATTACHMENT = "attachment"
        INLINE = "inline"

    token_hash = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the token; the token itself is not stored")
    collection = models.ForeignKey(Collection, models.CASCADE, related_name="+")
    file = models.ForeignKey(StoredFile, models.CASCADE, null=True, related_name="+", help_text="empty: an archive")
    selection = models.JSONField(
        default=list, help_text="UUIDs of the files in the archive; empty: all files that the user can read"
    )
    disposition = models.CharField(max_length=10, choices=Disposition, default=Disposition.ATTACHMENT)
    minted_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    minted_with = models.ForeignKey(
        ApiKey,
        models.CASCADE,
        null=True,
        related_name="+",
        help_text="API key that minted the link; revoking it invalidates the link",
    )
    minted_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)
    claimed_at = models.DateTimeField(null=True)
    object_id = models.UUIDField(
        null=True, help_text="content of the first download; a resumed transfer must have the same content"
    )
    bytes_left = models.BigIntegerField(default=0, help_text="bytes that resumed transfers can still fetch")

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(bytes_left__gte=0), name="link_budget_not_negative")]

    def __str__(self) -> str:
        return f"link {self.pk}"
