"""Who exists, who may act, and what was done."""

import uuid
from collections.abc import Iterable
from typing import Any, Final, Self

from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.contrib.auth.models import AbstractUser
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.db.models.functions import Cast, Lower

from tenants.work.leases import Leased


class Role(models.TextChoices):
    """The roles that the code knows. An egress policy may name others for its stages: see `check_roles`."""

    ADMIN = "admin"
    MEMBER = "member"
    INFORMATION_GOVERNANCE = "information_governance"
    RESEARCH_IT = "research_it"
    AUDITOR = "auditor"


SERVICE_ROLES: Final = (Role.ADMIN, Role.MEMBER, Role.AUDITOR)  # none that decides: a decision is a person's

check_role = RegexValidator(r"\A[a-z_]{1,40}\Z", "A role is 1 to 40 lower-case letters and underscores.")
check_slug = RegexValidator(
    r"\A[a-z0-9]+(-[a-z0-9]+)*\Z", "Use lower-case letters and digits, in words joined by single hyphens."
)


def check_roles(roles: object) -> None:
    if not isinstance(roles, list) or not roles:
        raise ValidationError("A member has at least one role, in a list.")
    for role in roles:
        check_role(role)
    if len(set(roles)) != len(roles):
        raise ValidationError("A role is named once.")


CIPHERS: Final = ("AES-GCM", "NONE")  # those of files.models.Cipher, which may not be imported here


def default_ciphers() -> list[str]:
    return ["AES-GCM"]


def check_ciphers(ciphers: object) -> None:
    if not isinstance(ciphers, list) or not ciphers or any(cipher not in CIPHERS for cipher in ciphers):
        raise ValidationError(f"Name one or more of {', '.join(CIPHERS)}, in a list.")


LONGEST_RETENTION: Final = 36_500  # days: a purge date has to lie in the calendar


class Scope(models.TextChoices):
    """What an API key may be used for, of what its owner may."""

    READ = "read", "Read collections and files"
    WRITE = "write", "Create, upload, change and delete"
    SHARE = "share", "Grant access to others"
    ADMINISTER = "administer", "The tenant's people and settings"
    AUDIT = "audit", "Read the audit trail"


def check_scopes(scopes: object) -> None:
    if not isinstance(scopes, list) or not scopes or len(set(scopes)) != len(scopes) or not set(scopes) <= set(Scope.values):
        raise ValidationError(f"Name one or more of {', '.join(Scope.values)}, each once.")


class User(AbstractUser):
    email = models.EmailField("e-mail address", unique=True, help_text="Stored in lower case, so that it is unique in any case.")
    token_version = models.PositiveIntegerField(default=0, editable=False, help_text="Counts up to end every token at once.")
    service_of = models.ForeignKey(
        "Tenant",
        models.PROTECT,
        null=True,
        blank=True,
        editable=False,
        related_name="service_accounts",
        help_text="A service account acts for its tenant alone, by API keys: it cannot sign in.",
    )

    key: "ApiKey | None" = None  # the one that this request came with: it narrows what the person may (see tenants.access)

    class Meta(AbstractUser.Meta):
        constraints = [
            models.CheckConstraint(condition=models.Q(email=Lower("email")), name="user_email_lower_case"),
            models.CheckConstraint(
                condition=models.Q(service_of=None)
                | models.Q(password__startswith=UNUSABLE_PASSWORD_PREFIX, is_staff=False, is_superuser=False),
                name="user_service_account_cannot_sign_in",
            ),
        ]

    def clean(self) -> None:
        super().clean()
        self.email = self.email.lower()
        if self.service_of_id and (self.is_staff or self.is_superuser):
            raise ValidationError("A service account is neither staff nor superuser.")

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """A new password ends every token, whoever sets it: the API, the admin, `manage.py changepassword`, a shell."""
        fields = None if update_fields is None else set(update_fields)
        if fields is None or "email" in fields:
            self.email = self.email.lower()
        if self._state.adding or (fields is not None and not fields & {"password", "token_version"}):
            super().save(force_insert=force_insert, force_update=force_update, using=using, update_fields=fields)
            return
        with transaction.atomic(using):
            # Under the lock, from the row: a stale instance must not set the count back, which would revive revoked tokens.
            stored = User.objects.using(using).select_for_update().filter(pk=self.pk).values("password", "token_version").first()
            if stored is not None:
                self.token_version = stored["token_version"] + (stored["password"] != self.password)
            if fields is not None:
                fields.add("token_version")
            super().save(force_insert=force_insert, force_update=force_update, using=using, update_fields=fields)


class Tenant(models.Model):
    class NewCollections(models.TextChoices):
        PRIVATE = "private", "Private to their creator"
        VIEWER = "viewer", "Readable for all members"
        EDITOR = "editor", "Writable for all members"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.CharField(max_length=50, unique=True, validators=[check_slug])
    name = models.CharField(max_length=200)
    is_active = models.BooleanField(default=True, help_text="A suspended tenant is not there for anybody, whatever their role.")
    created_at = models.DateTimeField(editable=False)
    quota_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="Plaintext bytes; empty for no limit.")
    quota_files = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty for no limit.")
    default_retention_days = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(LONGEST_RETENTION)],
        help_text="Empty for no expiry.",
    )
    allowed_ciphers = models.JSONField(default=default_ciphers, validators=[check_ciphers])
    new_collections = models.CharField(
        max_length=10, choices=NewCollections, default=NewCollections.PRIVATE, help_text="What all members may do with them."
    )
    allow_external_sharing = models.BooleanField(
        default=False,
        help_text="Whether access may be granted to people of other tenants. Turned off, their grants open nothing.",
    )
    vault_alias = models.CharField(max_length=50, default="vault", help_text="The STORAGES alias that new objects go to.")

    def __str__(self) -> str:
        return self.slug


class MembershipQuerySet(models.QuerySet["Membership"]):
    def with_role(self, role: str) -> Self:
        # In the text of the list, since SQLite's JSON has no `contains`. A role's letters are none that JSON escapes.
        return self.alias(roles_text=Cast("roles", models.TextField())).filter(roles_text__contains=f'"{role}"')

    def of_active_people(self) -> Self:
        """Who can sign in, and so act for themselves."""
        return self.filter(user__is_active=True, user__service_of=None)


class Membership(models.Model):
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="memberships")
    roles = models.JSONField(validators=[check_roles])
    created_at = models.DateTimeField(editable=False)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "tenant"], name="membership_unique"),
            models.CheckConstraint(condition=~models.Q(roles=[]), name="membership_has_a_role"),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant}"

    def clean(self) -> None:
        super().clean()
        if not self.user_id or self.user.service_of_id is None:
            return
        if self.user.service_of_id != self.tenant_id:
            raise ValidationError({"user": "A service account is a member of its own tenant only."})
        if isinstance(self.roles, list) and not all(role in SERVICE_ROLES for role in self.roles):
            raise ValidationError({"roles": f"A service account is {', '.join(SERVICE_ROLES)}."})


class ApiKey(models.Model):
    """A credential for programs: what its owner may in one tenant, within its scopes."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="api_keys")
    owner = models.ForeignKey(User, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=20, unique=True, help_text="the part before the dot, which names the key")
    secret_hash = models.CharField(max_length=64, help_text="hex of SHA-256 of the part behind the dot, which nobody keeps")
    scopes = models.JSONField(validators=[check_scopes])
    created_at = models.DateTimeField(editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+", editable=False)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="to the minute")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        indexes = [models.Index(fields=["tenant", "created_at", "id"], name="api_key_in_tenant_by_age")]
        constraints = [
            models.CheckConstraint(condition=~models.Q(scopes=[]), name="api_key_has_a_scope"),
            models.CheckConstraint(condition=models.Q(expires_at__gt=models.F("created_at")), name="api_key_ends_after_it_began"),
        ]

    def __str__(self) -> str:
        return self.prefix


class Invitation(models.Model):
    """An offer of membership to whoever reads this mailbox. The token in the mail is signed, and kept nowhere."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="invitations")
    email = models.EmailField(help_text="in lower case")
    roles = models.JSONField(validators=[check_roles])
    invited_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "email"], name="invitation_one_per_mailbox")]

    def __str__(self) -> str:
        return f"invitation {self.pk}"


class MailState(models.TextChoices):
    WAITING = "waiting"
    SENT = "sent"
    FAILED = "failed"  # given up
    DROPPED = "dropped"  # not sent, since there was nothing left to tell


class Mail(Leased):
    """A mail that is to be sent: written in the transaction of what it tells of, sent by the tick (`tenants.work.outbox`).

    It holds ids and no secrets: the text, with whatever token it carries, is made when it is sent.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=40, help_text="names the template")
    recipient = models.EmailField()
    copies = models.JSONField(default=list, help_text="who else gets it, in Cc")
    refused = models.JSONField(default=list, db_default=[], help_text="those in Cc whom the server refused, when it was sent")
    about = models.CharField(max_length=36, blank=True, db_index=True, help_text="uuid of what it tells of")
    facts = models.JSONField(default=dict, help_text="what the template is filled with")
    created_at = models.DateTimeField()
    due_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="given up")
    is_dropped = models.BooleanField(default=False, db_default=False, help_text="given up, since nothing was left to tell")
    problem = models.CharField(max_length=200, blank=True, help_text="why the last attempt failed")

    class Meta:
        indexes = [models.Index("due_at", condition=models.Q(sent_at=None, failed_at=None), name="mail_waiting")]

    def __str__(self) -> str:
        return f"{self.kind} mail {self.pk}"

    @property
    def state(self) -> MailState:
        if self.sent_at is not None:
            return MailState.SENT
        if self.failed_at is None:
            return MailState.WAITING
        return MailState.DROPPED if self.is_dropped else MailState.FAILED


class AuditEvent(models.Model):
    """One thing that was done. Ids are text without foreign keys, so that the event outlives what it describes.

    Written by `tenants.audit.record` only; the database refuses UPDATE, DELETE and TRUNCATE (`tenants.audit.triggers`). `body` is
    authoritative: canonical JSON of every other column and the facts. The columns beside it are there to be searched.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chain = models.CharField(max_length=36)  # the tenant's uuid, or "platform"
    seq = models.PositiveBigIntegerField()  # 1, 2, 3, ... in its chain
    at = models.DateTimeField(db_index=True)
    action = models.CharField(max_length=100, db_index=True)
    actor_id = models.CharField(max_length=36, blank=True)
    actor = models.CharField(max_length=150)
    tenant_id = models.CharField(max_length=36, blank=True)
    target_kind = models.CharField(max_length=50, blank=True)
    target_id = models.CharField(max_length=100, blank=True)
    request_id = models.CharField(max_length=100, blank=True)
    body = models.TextField()
    prev_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)  # hex of sha256(prev_hash || body)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["chain", "seq"], name="audit_event_chain_seq")]
        indexes = [
            models.Index(fields=["target_id"], name="audit_event_target"),
            models.Index(fields=["actor"], name="audit_event_actor"),
            models.Index(fields=["request_id"], name="audit_event_request"),
        ]

    def __str__(self) -> str:
        return f"{self.action} ({self.chain} {self.seq})"


class AuditHead(models.Model):
    """The last event of a chain: the row that writers queue on, and the yardstick that shows a tail cut off."""

    chain = models.CharField(primary_key=True, max_length=36)
    seq = models.PositiveBigIntegerField()
    hash = models.CharField(max_length=64)

    def __str__(self) -> str:
        return f"{self.chain} at {self.seq}"


class RateLimit(models.Model):
    """How much of a limit a subject has used (`tenants.limits`)."""

    key = models.CharField(primary_key=True, max_length=60, help_text="name of the limit, and a keyed hash of the subject")
    full_at = models.BigIntegerField(db_index=True, help_text="when it is unused again; Unix time in microseconds")

    def __str__(self) -> str:
        return self.key


class KnownNetwork(models.Model):
    """A network from which a person has signed in: see `tenants.auth.sign_in_limits`."""

    user = models.ForeignKey(User, models.CASCADE, related_name="known_networks")
    network = models.CharField(max_length=43, help_text="an IPv4 address or an IPv6 /64")
    signed_in_at = models.DateTimeField(help_text="the last time")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "network"], name="known_network_once")]

    def __str__(self) -> str:
        return f"network of {self.user}"
