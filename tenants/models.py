"""Tenants, users, memberships, credentials, mails, rate limits and the audit trail."""

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
    """The built-in roles. Stages of egress policies can name further roles, so `check_role` accepts any well-formed name."""

    ADMIN = "admin"
    MEMBER = "member"
    INFORMATION_GOVERNANCE = "information_governance"
    RESEARCH_IT = "research_it"
    AUDITOR = "auditor"


SERVICE_ROLES: Final = (Role.ADMIN, Role.MEMBER, Role.AUDITOR)  # of service accounts; only people decide on egress

check_role = RegexValidator(r"\A[a-z_]{1,40}\Z", "Use 1 to 40 lower-case letters and underscores.")
check_slug = RegexValidator(
    r"\A[a-z0-9]+(-[a-z0-9]+)*\Z", "Use words of lower-case letters and digits, separated by single hyphens."
)


def check_roles(roles: object) -> None:
    if not isinstance(roles, list) or not roles:
        raise ValidationError("Enter a list of at least one role.")
    for role in roles:
        check_role(role)
    if len(set(roles)) != len(roles):
        raise ValidationError("Name each role only once.")


CIPHERS: Final = ("AES-GCM", "NONE")  # the values of files.models.Cipher, which this app must not import


def default_ciphers() -> list[str]:
    return ["AES-GCM"]


def check_ciphers(ciphers: object) -> None:
    if not isinstance(ciphers, list) or not ciphers or any(cipher not in CIPHERS for cipher in ciphers):
        raise ValidationError(f"Enter a list of one or more of {', '.join(CIPHERS)}.")


MAX_RETENTION_DAYS: Final = 36_500  # keeps purge dates within the range of `datetime`


class Scope(models.TextChoices):
    """A scope limits an API key to some of its owner's rights."""

    READ = "read", "Read collections and files"
    WRITE = "write", "Create, upload, change and delete"
    SHARE = "share", "Grant access to others"
    ADMINISTER = "administer", "Manage the tenant's members and settings"
    AUDIT = "audit", "Read the audit trail"


def check_scopes(scopes: object) -> None:
    if not isinstance(scopes, list) or not scopes or len(set(scopes)) != len(scopes) or not set(scopes) <= set(Scope.values):
        raise ValidationError(f"Enter a list of one or more of {', '.join(Scope.values)}, each only once.")


class User(AbstractUser):
    email = models.EmailField(
        "e-mail address", unique=True, help_text="Stored in lower case, so that addresses are unique regardless of case."
    )
    token_version = models.PositiveIntegerField(
        default=0, editable=False, help_text="Incrementing it revokes all tokens of the user."
    )
    service_of = models.ForeignKey(
        "Tenant",
        models.PROTECT,
        null=True,
        blank=True,
        editable=False,
        related_name="service_accounts",
        help_text="The tenant of a service account. A service account uses API keys and cannot sign in.",
    )

    key: "ApiKey | None" = None  # the API key of this request, which limits the rights of the user (see tenants.access)

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
            raise ValidationError("A service account cannot be staff or superuser.")

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Revokes all tokens of the user if the password changes, whether the API, the admin, a command or a shell changes it."""
        fields = None if update_fields is None else set(update_fields)
        if fields is None or "email" in fields:
            self.email = self.email.lower()
        if self._state.adding or (fields is not None and not fields & {"password", "token_version"}):
            super().save(force_insert=force_insert, force_update=force_update, using=using, update_fields=fields)
            return
        with transaction.atomic(using):
            # Read the version under the lock: a stale instance would reset it, which would make revoked tokens valid again.
            stored = User.objects.using(using).select_for_update().filter(pk=self.pk).values("password", "token_version").first()
            if stored is not None:
                self.token_version = stored["token_version"] + (stored["password"] != self.password)
            if fields is not None:
                fields.add("token_version")
            super().save(force_insert=force_insert, force_update=force_update, using=using, update_fields=fields)


class Tenant(models.Model):
    class NewCollections(models.TextChoices):
        PRIVATE = "private", "Private to the creator"
        VIEWER = "viewer", "Readable by all members"
        EDITOR = "editor", "Writable by all members"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.CharField(max_length=50, unique=True, validators=[check_slug])
    name = models.CharField(max_length=200)
    is_active = models.BooleanField(default=True, help_text="Only superusers can see a suspended tenant.")
    created_at = models.DateTimeField(editable=False)
    quota_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="In plaintext bytes. Leave empty for no limit.")
    quota_files = models.PositiveBigIntegerField(null=True, blank=True, help_text="Leave empty for no limit.")
    default_retention_days = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_RETENTION_DAYS)],
        help_text="In days. Leave empty for no expiry.",
    )
    allowed_ciphers = models.JSONField(default=default_ciphers, validators=[check_ciphers])
    new_collections = models.CharField(
        max_length=10,
        choices=NewCollections,
        default=NewCollections.PRIVATE,
        help_text="Access of the tenant's members to new collections.",
    )
    allow_external_sharing = models.BooleanField(
        default=False,
        help_text="Allows grants to users of other tenants. While it is off, existing grants of this kind give no access.",
    )
    vault_alias = models.CharField(
        max_length=50, default="vault", help_text="Alias in STORAGES under which new objects are stored."
    )

    def __str__(self) -> str:
        return self.slug


class MembershipQuerySet(models.QuerySet["Membership"]):
    def with_role(self, role: str) -> Self:
        """Filters by role. Searches the text of the list, because JSON on SQLite has no `contains`; JSON escapes no role name."""
        return self.alias(roles_text=Cast("roles", models.TextField())).filter(roles_text__contains=f'"{role}"')

    def of_active_people(self) -> Self:
        """Filters by active users who are not service accounts."""
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
            raise ValidationError({"user": "A service account can belong to its own tenant only."})
        if isinstance(self.roles, list) and not all(role in SERVICE_ROLES for role in self.roles):
            raise ValidationError({"roles": f"A service account can only have the roles {', '.join(SERVICE_ROLES)}."})


class ApiKey(models.Model):
    """A credential for programs. It grants the rights of its owner in one tenant, limited by its scopes."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="api_keys")
    owner = models.ForeignKey(User, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=20, unique=True, help_text="the part before the dot; identifies the key")
    secret_hash = models.CharField(
        max_length=64, help_text="SHA-256 of the part after the dot, in hex; the part itself is not stored"
    )
    scopes = models.JSONField(validators=[check_scopes])
    created_at = models.DateTimeField(editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+", editable=False)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="accurate to one minute")
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
    """An invitation of the reader of a mailbox to a tenant. The token in the mail is signed and not stored."""

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
    FAILED = "failed"  # all attempts failed
    DROPPED = "dropped"  # not sent, because it had become obsolete


class Mail(Leased):
    """A mail in the outbox (`tenants.work.outbox`).

    It holds ids and no secrets. The text, with any token, is created when the mail is sent.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=40, help_text="selects the templates")
    recipient = models.EmailField()
    copies = models.JSONField(default=list, help_text="Cc addresses")
    refused = models.JSONField(default=list, db_default=[], help_text="Cc addresses that the mail server refused")
    about = models.CharField(max_length=36, blank=True, db_index=True, help_text="UUID of the object that the mail reports on")
    facts = models.JSONField(default=dict, help_text="values for the templates; no secrets")
    created_at = models.DateTimeField()
    due_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="when the last attempt failed, or the mail was dropped")
    is_dropped = models.BooleanField(default=False, db_default=False, help_text="not sent, because it had become obsolete")
    problem = models.CharField(max_length=200, blank=True, help_text="error of the last attempt")

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
    """An event in the audit trail. Ids are text without foreign keys, so that the event outlives the objects that it names.

    Only `tenants.audit.record` writes events. The database refuses UPDATE, DELETE and TRUNCATE (`tenants.audit.triggers`). `body`
    is authoritative: canonical JSON of the facts and all other columns. The columns exist for searching.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chain = models.CharField(max_length=36)  # the UUID of the tenant, or "platform"
    seq = models.PositiveBigIntegerField()  # 1, 2, 3, ... in each chain
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
    """The last event of a chain. Writers lock this row, and verification uses it to detect a truncated chain."""

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
