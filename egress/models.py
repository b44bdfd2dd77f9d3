"""Egress requests: the requested files, the decisions, the transitions and the downloads.

Rows refer to users by id, without a foreign key constraint, and by name. A decision outlives the account that made it.
"""

from typing import Any, ClassVar, Final
from uuid import uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q

from egress.states import OPEN, State
from files.models import Collection, DownloadLink, StoredFile
from tenants.models import SERVICE_ROLES, Tenant, check_role
from tenants.work.leases import Leased


MAX_DAYS: Final = 366
MAX_FILES: Final = 10_000  # in one request


def user_reference(**options: Any) -> "models.ForeignKey[Any, Any]":
    """A reference to a user whose account may be deleted. Ids of users are not reused."""
    return models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, related_name="+", editable=False, **options
    )


def default_stages() -> list[str]:
    return ["information_governance", "research_it"]


def default_downloaders() -> list[str]:
    return ["requester"]


def check_stages(stages: object) -> None:
    if not isinstance(stages, list) or not 1 <= len(stages) <= 10:
        raise ValidationError("Give a list of one to ten stages.")
    for role in stages:
        check_role(role)
        if role in SERVICE_ROLES:
            raise ValidationError(f"These roles cannot be used for a stage: {', '.join(SERVICE_ROLES)}.")
    if len(set(stages)) != len(stages):
        raise ValidationError("Give each stage once.")


class EgressPolicy(models.Model):
    """The rules for new requests of a tenant. Each request keeps a copy of the policy from its submission."""

    class Format(models.TextChoices):
        SEALED = "sealed", "Encrypted"
        PLAIN = "plain", "Plain zip, encrypted by the bucket"

    tenant = models.OneToOneField(Tenant, models.CASCADE, related_name="egress_policy")
    version = models.PositiveIntegerField(default=0, editable=False, help_text="number of changes")
    stages = models.JSONField(default=default_stages, validators=[check_stages], help_text="roles in the order of decision")
    single_approval = models.BooleanField(default=False, help_text="The first stage decides alone.")
    max_downloads = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    download_window_days = models.PositiveIntegerField(default=7, validators=[MinValueValidator(1), MaxValueValidator(MAX_DAYS)])
    request_expiry_days = models.PositiveIntegerField(default=21, validators=[MinValueValidator(1), MaxValueValidator(MAX_DAYS)])
    file_types = models.JSONField(default=list, help_text="allowed extensions, such as csv; empty: all")
    max_files = models.PositiveIntegerField(default=MAX_FILES, validators=[MinValueValidator(1), MaxValueValidator(MAX_FILES)])
    max_file_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="empty for no limit")
    max_total_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="empty for no limit")
    min_reason_length = models.PositiveIntegerField(
        default=10, validators=[MinValueValidator(1), MaxValueValidator(1000)], help_text="characters"
    )
    downloaders = models.JSONField(default=default_downloaders, help_text="`requester`, or roles")
    release_format = models.CharField(max_length=10, choices=Format, default=Format.SEALED)
    contact_email = models.EmailField(blank=True, help_text="sender and contact address in mails about its requests")
    app_url = models.URLField(blank=True, help_text="frontend that mails link to; empty: the frontend of the platform")

    class Meta:
        verbose_name_plural = "egress policies"

    def __str__(self) -> str:
        return f"egress policy of {self.tenant}"

    @property
    def effective_stages(self) -> list[str]:
        return self.stages[:1] if self.single_approval else list(self.stages)


class EgressRequest(Leased):
    """A request to release files of one collection. Only `egress.transitions.move` changes its status; a trigger enforces this.

    Each submission starts a round, which has its own files and decisions.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="egress_requests", editable=False)
    collection = models.ForeignKey(
        Collection,
        models.SET_NULL,
        null=True,
        related_name="egress_requests",
        editable=False,
        help_text="null after the collection was destroyed",
    )
    collection_uuid = models.UUIDField(editable=False)
    collection_slug = models.CharField(max_length=80, editable=False)
    collection_name = models.CharField(max_length=200, editable=False)
    requester = user_reference()
    requester_name = models.CharField(max_length=150, editable=False)
    justification = models.TextField(editable=False)
    policy = models.JSONField(editable=False, help_text="copy from the submission")
    stages = models.JSONField(editable=False, help_text="roles in the order of decision")
    stage_count = models.PositiveIntegerField(editable=False)

    status = models.CharField(max_length=10, choices=State, default=State.SUBMITTED, editable=False)
    round = models.PositiveIntegerField(default=1, editable=False)
    stage = models.PositiveIntegerField(default=0, editable=False, help_text="of the next decision, from 0")
    awaited_role = models.CharField(
        max_length=40, blank=True, editable=False, help_text="role that decides next, while in review"
    )
    step = models.PositiveIntegerField(default=0, editable=False, help_text="number of the last transition")
    content_sha256 = models.CharField(
        max_length=64, editable=False, help_text="of names, lengths and digests of the round's files"
    )
    file_count = models.PositiveIntegerField(editable=False)
    total_length = models.BigIntegerField(editable=False, help_text="plaintext bytes")
    created_at = models.DateTimeField(editable=False)
    submitted_at = models.DateTimeField(editable=False, help_text="start of this round")
    changed_at = models.DateTimeField(editable=False, help_text="time of the last change of status")
    expires_at = models.DateTimeField(
        null=True, editable=False, help_text="when an open request expires or fails; null: not open"
    )
    problem = models.CharField(max_length=500, blank=True, editable=False, help_text="blocking reason")
    attempts_before = models.PositiveIntegerField(default=0, editable=False, help_text="leases before the current task")

    package_collection = models.OneToOneField(
        Collection,
        models.SET_NULL,
        null=True,
        related_name="package_of",
        editable=False,
        help_text="hidden collection of the package",
    )
    released_at = models.DateTimeField(null=True, editable=False)
    available_until = models.DateTimeField(null=True, editable=False)
    packed = models.BigIntegerField(default=0, editable=False, help_text="bytes written to the package so far")
    package_length = models.BigIntegerField(null=True, editable=False)
    package_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    manifest = models.TextField(blank=True, editable=False, help_text="canonical JSON, as signed")
    signature = models.CharField(max_length=100, blank=True, editable=False, help_text="Ed25519, base64")
    max_downloads = models.PositiveIntegerField(editable=False)
    download_count = models.PositiveIntegerField(default=0, editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("collection_uuid", condition=Q(status__in=OPEN), name="egress_one_open_per_collection"),
            models.CheckConstraint(condition=Q(download_count__lte=F("max_downloads")), name="egress_downloads_within_limit"),
            models.CheckConstraint(
                condition=Q(status__in=OPEN, expires_at__isnull=False) | Q(~Q(status__in=OPEN), expires_at=None),
                name="egress_open_has_a_deadline",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["released", "closed", "revoked"])
                | Q(released_at__isnull=False, available_until__isnull=False) & ~Q(manifest="") & ~Q(signature=""),
                name="egress_released_has_a_manifest",
            ),
            models.CheckConstraint(
                condition=Q(status="in_review") & ~Q(awaited_role="") | ~Q(status="in_review") & Q(awaited_role=""),
                name="egress_in_review_awaits_a_role",
            ),
        ]
        indexes: ClassVar = [
            models.Index("tenant", "created_at", "id", name="egress_in_tenant_by_age"),
            models.Index("requester", "created_at", "id", name="egress_of_requester_by_age"),
            models.Index("created_at", "id", name="egress_by_age"),
            models.Index("status", "changed_at", name="egress_by_status"),
            models.Index("expires_at", name="egress_by_deadline"),
        ]

    def __str__(self) -> str:
        return f"egress request {self.pk}"

    @property
    def downloads_left(self) -> int:
        return self.max_downloads - self.download_count if self.status == State.RELEASED else 0


class Transition(models.Model):
    """One entry in the timeline of a request. Rows are immutable; a trigger rejects a change of status without its transition."""

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="steps")
    number = models.PositiveIntegerField()
    from_status = models.CharField(max_length=10, choices=State, blank=True)
    to_status = models.CharField(max_length=10, choices=State)
    round = models.PositiveIntegerField()
    stage = models.PositiveIntegerField()
    at = models.DateTimeField()
    by = user_reference(null=True)
    by_name = models.CharField(max_length=150, help_text="username, or system")
    reason = models.TextField(blank=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("request", "number", name="step_number_once_in_request")]

    def __str__(self) -> str:
        return f"transition {self.number} of {self.request_id}"


class StagedFile(models.Model):
    """A pinned file and its copy in staging: the same ciphertext under another object key."""

    class Status(models.TextChoices):
        PINNED = "pinned"
        STAGED = "staged"
        WIPING = "wiping"  # no longer readable; due for deletion
        WIPED = "wiped"  # a listing has confirmed that the copy is deleted

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="items")
    round = models.PositiveIntegerField()
    number = models.PositiveIntegerField(help_text="within the round, from 1")
    file = models.ForeignKey(
        StoredFile,
        models.SET_NULL,
        null=True,
        related_name="egress_items",
        help_text="its key decrypts the copy; null: deleted or unpinned",
    )
    file_uuid = models.UUIDField()
    filename = models.CharField(max_length=255)
    content_type = models.CharField(max_length=127)
    length = models.BigIntegerField(help_text="plaintext bytes")
    sha256 = models.CharField(max_length=64, help_text="of the plaintext, hex")
    object_id = models.UUIDField(help_text="pinned content")
    status = models.CharField(max_length=10, choices=Status, default=Status.PINNED)
    store = models.CharField(max_length=50, help_text="STORAGES alias of the copy")
    object_key = models.CharField(max_length=200, unique=True, help_text="of the copy")
    object_etag = models.CharField(max_length=200, blank=True, help_text="of the copy")
    wiped_at = models.DateTimeField(null=True, help_text="when a listing confirmed the deletion of the copy")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint("request", "round", "number", name="item_number_once_in_round"),
            models.CheckConstraint(
                condition=Q(status="wiped", wiped_at__isnull=False) | ~Q(status="wiped") & Q(wiped_at=None),
                name="item_wiped_has_a_time",
            ),
        ]
        indexes: ClassVar = [models.Index("status", "request", name="item_by_status_and_request")]

    def __str__(self) -> str:
        return f"file {self.number} of {self.request_id}"


class Contributor(models.Model):
    """A user who created or last wrote a pinned file. They cannot decide in this round."""

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="contributors")
    round = models.PositiveIntegerField()
    user = user_reference()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("request", "round", "user", name="contributor_once_in_round")]

    def __str__(self) -> str:
        return f"contributor to {self.request_id}"


class Decision(models.Model):
    """The decision of one reviewer at one stage. It becomes void if the reviewer loses the right to decide before the release."""

    class Verdict(models.TextChoices):
        APPROVE = "approve"
        REJECT = "reject"
        RETURN = "return"

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="decisions")
    round = models.PositiveIntegerField()
    stage = models.PositiveIntegerField()
    role = models.CharField(max_length=40)
    verdict = models.CharField(max_length=10, choices=Verdict)
    reason = models.TextField()
    content_sha256 = models.CharField(max_length=64, help_text="digest of the files that were reviewed")
    by = user_reference()
    by_name = models.CharField(max_length=150)
    by_email = models.EmailField()
    at = models.DateTimeField()
    voided_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                "request", "round", "stage", condition=Q(voided_at=None), name="decision_once_per_stage_and_round"
            ),
            models.UniqueConstraint(
                "request", "round", "by", condition=Q(voided_at=None), name="decision_once_per_person_and_round"
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="decision_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} of {self.request_id}"


class ReadReceipt(models.Model):
    """Records that a reviewer read bytes of a staged file."""

    item = models.ForeignKey(StagedFile, models.PROTECT, related_name="receipts")
    by = user_reference()
    by_name = models.CharField(max_length=150)
    first_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("item", "by", name="receipt_once_per_person")]

    def __str__(self) -> str:
        return f"receipt for {self.item_id}"


class Download(models.Model):
    """One download of a package by one user. An interrupted transfer resumes within the same download."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="downloads")
    by = user_reference()
    by_name = models.CharField(max_length=150)
    link = models.ForeignKey(
        # Expired links are deleted in bulk. No constraint, so that the deletion neither loads nor updates these rows.
        DownloadLink,
        models.DO_NOTHING,
        db_constraint=False,
        null=True,
        related_name="+",
        help_text="link that started the download; links are deleted after an hour",
    )
    granted_at = models.DateTimeField()
    touched_at = models.DateTimeField(help_text="when bytes were last sent")
    bytes_left = models.BigIntegerField(help_text="bytes that a resumed transfer may still fetch")

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(bytes_left__gte=0), name="download_budget_not_negative")]

    def __str__(self) -> str:
        return f"download of {self.request_id}"
