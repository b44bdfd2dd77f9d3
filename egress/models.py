"""Requests to let files out: what is asked for, who decided what, and what became of it.

People are named by ids without a constraint, and by name: what somebody decided stands when they are gone.
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


LONGEST_DAYS: Final = 366
MOST_FILES: Final = 10_000  # of one request


def person(**options: Any) -> "models.ForeignKey[Any, Any]":
    """Somebody who may be gone: their number stays, and is given to nobody else."""
    return models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, related_name="+", editable=False, **options
    )


def default_stages() -> list[str]:
    return ["information_governance", "research_it"]


def default_downloaders() -> list[str]:
    return ["requester"]


def check_stages(stages: object) -> None:
    if not isinstance(stages, list) or not 1 <= len(stages) <= 10:
        raise ValidationError("Name one to ten stages, in a list.")
    for role in stages:
        check_role(role)
        if role in SERVICE_ROLES:
            raise ValidationError(f"A stage has a role of its own: not {', '.join(SERVICE_ROLES)}.")
    if len(set(stages)) != len(stages):
        raise ValidationError("A stage is named once.")


class EgressPolicy(models.Model):
    """What holds for a tenant's requests from now on: each keeps a copy from the moment when it was submitted."""

    class Format(models.TextChoices):
        SEALED = "sealed", "Encrypted"
        PLAIN = "plain", "As a plain zip, for a bucket that encrypts by itself"

    tenant = models.OneToOneField(Tenant, models.CASCADE, related_name="egress_policy")
    version = models.PositiveIntegerField(default=0, editable=False, help_text="counts the changes")
    stages = models.JSONField(default=default_stages, validators=[check_stages], help_text="roles, in the order of decisions")
    single_approval = models.BooleanField(default=False, help_text="The first stage decides alone.")
    max_downloads = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    download_window_days = models.PositiveIntegerField(
        default=7, validators=[MinValueValidator(1), MaxValueValidator(LONGEST_DAYS)]
    )
    request_expiry_days = models.PositiveIntegerField(
        default=21, validators=[MinValueValidator(1), MaxValueValidator(LONGEST_DAYS)]
    )
    file_types = models.JSONField(default=list, help_text="extensions that may leave, such as csv; empty for any")
    max_files = models.PositiveIntegerField(default=MOST_FILES, validators=[MinValueValidator(1), MaxValueValidator(MOST_FILES)])
    max_file_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="empty for no limit")
    max_total_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="empty for no limit")
    min_reason_length = models.PositiveIntegerField(
        default=10, validators=[MinValueValidator(1), MaxValueValidator(1000)], help_text="characters"
    )
    downloaders = models.JSONField(default=default_downloaders, help_text="`requester`, or roles")
    release_format = models.CharField(max_length=10, choices=Format, default=Format.SEALED)
    contact_email = models.EmailField(blank=True, help_text="From of its mails, and whom they name for questions")
    app_url = models.URLField(blank=True, help_text="of the frontend that its mails link to; empty for the platform's")

    class Meta:
        verbose_name_plural = "egress policies"

    def __str__(self) -> str:
        return f"egress policy of {self.tenant}"

    @property
    def stages_in_force(self) -> list[str]:
        return self.stages[:1] if self.single_approval else list(self.stages)


class EgressRequest(Leased):
    """The files of one collection that are to leave it. Only `egress.transitions.move` changes the status; a trigger sees to it.

    A round begins with each submission, and has its own files and decisions.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="egress_requests", editable=False)
    collection = models.ForeignKey(
        Collection, models.SET_NULL, null=True, related_name="egress_requests", editable=False, help_text="none: destroyed since"
    )
    collection_uuid = models.UUIDField(editable=False)
    collection_slug = models.CharField(max_length=80, editable=False)
    collection_name = models.CharField(max_length=200, editable=False)
    requester = person()
    requester_name = models.CharField(max_length=150, editable=False)
    justification = models.TextField(editable=False)
    policy = models.JSONField(editable=False, help_text="as it was when this was submitted")
    stages = models.JSONField(editable=False, help_text="roles, in the order of decisions")
    stage_count = models.PositiveIntegerField(editable=False)

    status = models.CharField(max_length=10, choices=State, default=State.SUBMITTED, editable=False)
    round = models.PositiveIntegerField(default=1, editable=False)
    stage = models.PositiveIntegerField(default=0, editable=False, help_text="of the decision that is next, from 0")
    awaited_role = models.CharField(max_length=40, blank=True, editable=False, help_text="who decides now, in review")
    step = models.PositiveIntegerField(default=0, editable=False, help_text="number of its last step")
    content_sha256 = models.CharField(max_length=64, editable=False, help_text="of the round's names, lengths and digests")
    file_count = models.PositiveIntegerField(editable=False)
    total_length = models.BigIntegerField(editable=False, help_text="plaintext bytes")
    created_at = models.DateTimeField(editable=False)
    submitted_at = models.DateTimeField(editable=False, help_text="of this round")
    changed_at = models.DateTimeField(editable=False, help_text="since when it is in its state")
    expires_at = models.DateTimeField(null=True, editable=False, help_text="when it ends by itself; none: it has ended")
    problem = models.CharField(max_length=500, blank=True, editable=False, help_text="what keeps it from going on")
    attempts_before = models.PositiveIntegerField(default=0, editable=False, help_text="at what it does now: leases since count")

    package_collection = models.OneToOneField(
        Collection, models.SET_NULL, null=True, related_name="package_of", editable=False, help_text="hidden: holds the package"
    )
    released_at = models.DateTimeField(null=True, editable=False)
    available_until = models.DateTimeField(null=True, editable=False)
    packed = models.BigIntegerField(default=0, editable=False, help_text="bytes of the package that have been written")
    package_length = models.BigIntegerField(null=True, editable=False)
    package_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    manifest = models.TextField(blank=True, editable=False, help_text="canonical JSON, exactly as it is signed")
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
    """One change of state: the timeline of a request. Nothing changes it, and no status changes without one."""

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="steps")
    number = models.PositiveIntegerField()
    from_status = models.CharField(max_length=10, choices=State, blank=True)
    to_status = models.CharField(max_length=10, choices=State)
    round = models.PositiveIntegerField()
    stage = models.PositiveIntegerField()
    at = models.DateTimeField()
    by = person(null=True)
    by_name = models.CharField(max_length=150, help_text="username, or system")
    reason = models.TextField(blank=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("request", "number", name="step_number_once_in_request")]

    def __str__(self) -> str:
        return f"step {self.number} of {self.request_id}"


class StagedFile(models.Model):
    """A file as it was pinned, and its copy in staging: the same ciphertext, under a key of its own."""

    class Status(models.TextChoices):
        PINNED = "pinned"
        STAGED = "staged"
        WIPING = "wiping"  # nobody reads it any more
        WIPED = "wiped"  # and a listing has shown that it is gone

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="items")
    round = models.PositiveIntegerField()
    number = models.PositiveIntegerField(help_text="in its round, from 1")
    file = models.ForeignKey(
        StoredFile, models.SET_NULL, null=True, related_name="egress_items", help_text="has what opens the copy; none: gone since"
    )
    file_uuid = models.UUIDField()
    filename = models.CharField(max_length=255)
    content_type = models.CharField(max_length=127)
    length = models.BigIntegerField(help_text="plaintext bytes")
    sha256 = models.CharField(max_length=64, help_text="of the plaintext, hex")
    object_id = models.UUIDField(help_text="the content that was pinned")
    status = models.CharField(max_length=10, choices=Status, default=Status.PINNED)
    store = models.CharField(max_length=50, help_text="STORAGES alias of the copy")
    object_key = models.CharField(max_length=200, unique=True, help_text="of the copy")
    object_etag = models.CharField(max_length=200, blank=True, help_text="of the copy")
    wiped_at = models.DateTimeField(null=True, help_text="the copy was listed as absent")

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
        return f"item {self.number} of {self.request_id}"


class Contributor(models.Model):
    """Who wrote a pinned content, or the file's first: they decide nothing about this round."""

    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="contributors")
    round = models.PositiveIntegerField()
    user = person()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("request", "round", "user", name="contributor_once_in_round")]

    def __str__(self) -> str:
        return f"contributor to {self.request_id}"


class Decision(models.Model):
    """What one person said at one stage. It stands, unless they lost the right before anything was released: then it is void."""

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
    content_sha256 = models.CharField(max_length=64, help_text="what was decided on")
    by = person()
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
    """A reviewer had bytes of a staged file."""

    item = models.ForeignKey(StagedFile, models.PROTECT, related_name="receipts")
    by = person()
    by_name = models.CharField(max_length=150)
    first_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint("item", "by", name="receipt_once_per_person")]

    def __str__(self) -> str:
        return f"opening of {self.item_id}"


class Download(models.Model):
    """The grant of one package's bytes to one person, of which a transfer that broke fetches the rest."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    request = models.ForeignKey(EgressRequest, models.PROTECT, related_name="downloads")
    by = person()
    by_name = models.CharField(max_length=150)
    link = models.ForeignKey(
        # Links are forgotten by the thousand, in one statement: nothing here has to be loaded or changed for that.
        DownloadLink,
        models.DO_NOTHING,
        db_constraint=False,
        null=True,
        related_name="+",
        help_text="that it was claimed with, an hour after which it is gone",
    )
    granted_at = models.DateTimeField()
    touched_at = models.DateTimeField(help_text="when bytes last left")
    bytes_left = models.BigIntegerField(help_text="what a broken transfer may still fetch")

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(bytes_left__gte=0), name="download_budget_not_negative")]

    def __str__(self) -> str:
        return f"download of {self.request_id}"
