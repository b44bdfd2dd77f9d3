"""Input and output of the egress API."""

import json
from collections import defaultdict
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from egress import access, downloads
from egress.models import MAX_DAYS, MAX_FILES, Decision, Download, EgressPolicy, EgressRequest, StagedFile, Transition
from egress.states import NEXT_ACTORS, State
from tenants.absolute_urls import absolute_url
from tenants.models import SERVICE_ROLES, Mail, MailState, Role
from tenants.serializers import MAX_BIGINT, UtcDateTimeField


class FreeText(serializers.CharField):
    """A text by a user, which may have several lines."""

    default_error_messages = {"control": "Control characters are not allowed."}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=5000, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):  # DRF would accept a number.
            self.fail("invalid")
        value = str(super().to_internal_value(data))
        if not all(character.isprintable() or character in "\n\r\t" for character in value):
            self.fail("control")
        return value


class Filenames(serializers.ListField):
    child = serializers.CharField(max_length=1024, trim_whitespace=False)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_FILES, help_text="all that you can read, if left out", **kwargs)


# --- Input ---


class SubmitInput(serializers.Serializer[Any]):
    collection = serializers.CharField(max_length=200, help_text="id or display name")
    tenant = serializers.CharField(max_length=50, required=False, help_text="where a display name alone does not say which")
    files = Filenames(required=False)
    justification = FreeText()


class ResubmitInput(serializers.Serializer[Any]):
    files = serializers.ListField(
        child=serializers.CharField(max_length=1024, trim_whitespace=False),
        max_length=MAX_FILES,
        required=False,
        help_text="those of the round before, if left out",
    )
    justification = FreeText(required=False, help_text="that of the round before, if left out")


class DecisionInput(serializers.Serializer[Any]):
    verdict = serializers.ChoiceField(choices=Decision.Verdict.choices)
    reason = FreeText()
    round = serializers.IntegerField(min_value=1, required=False, help_text="that was read; refused if it is over by now")
    stage = serializers.IntegerField(min_value=1, required=False, help_text="from 1; refused if the request is at another by now")


class ReasonInput(serializers.Serializer[Any]):
    reason = FreeText()


class RoundInput(serializers.Serializer[Any]):
    round = serializers.IntegerField(min_value=1, required=False, help_text="whose files are shown; the current one, if left out")


class OptionalReasonInput(serializers.Serializer[Any]):
    reason = FreeText(required=False, allow_blank=True, default="")


class ExtendInput(ReasonInput):
    downloads = serializers.IntegerField(min_value=0, max_value=1000, default=0, help_text="more of them")
    days = serializers.IntegerField(min_value=0, max_value=MAX_DAYS, default=0, help_text="more of them")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs["downloads"] and not attrs["days"]:
            problem = ["Give a number of downloads or days greater than 0."]
            raise serializers.ValidationError({"downloads": problem, "days": problem})
        return attrs


class Pattern(serializers.RegexField):
    """A string with a specific error message."""

    def __init__(self, pattern: str, expected: str) -> None:
        super().__init__(pattern, error_messages={"invalid": expected})


class PolicyInput(serializers.Serializer[Any]):
    """The whole policy. A missing field gets its default value, therefore unknown fields are refused."""

    version = serializers.IntegerField(
        min_value=0, required=False, help_text="of the policy that this replaces; refused if that is another by now"
    )
    stages = serializers.ListField(
        child=Pattern(r"^[a-z_]{1,40}$", "A role consists of lower-case letters and underscores."),
        min_length=1,
        max_length=10,
        required=False,
        help_text="roles, in order",
    )
    single_approval = serializers.BooleanField(default=False)
    max_downloads = serializers.IntegerField(min_value=1, max_value=1000, default=1)
    download_window_days = serializers.IntegerField(min_value=1, max_value=MAX_DAYS, default=7)
    request_expiry_days = serializers.IntegerField(min_value=1, max_value=MAX_DAYS, default=21)
    file_types = serializers.ListField(
        child=Pattern(r"^[a-z0-9_+-]{1,20}$", "Give an extension in lower case without its dot, such as csv."),
        max_length=100,
        default=list,
        help_text="extensions; empty for any",
    )
    max_files = serializers.IntegerField(min_value=1, max_value=MAX_FILES, default=MAX_FILES)
    max_file_bytes = serializers.IntegerField(min_value=1, max_value=MAX_BIGINT, allow_null=True, default=None)
    max_total_bytes = serializers.IntegerField(min_value=1, max_value=MAX_BIGINT, allow_null=True, default=None)
    min_reason_length = serializers.IntegerField(min_value=1, max_value=1000, default=10)
    downloaders = serializers.ListField(
        child=Pattern(r"^[a-z_]{1,40}$", "Give `requester` or a role in lower-case letters and underscores."),
        min_length=1,
        max_length=10,
        required=False,
        help_text="requester, or roles",
    )
    release_format = serializers.ChoiceField(choices=EgressPolicy.Format.choices, default=EgressPolicy.Format.SEALED)
    contact_email = serializers.EmailField(max_length=254, allow_blank=True, default="")
    app_url = serializers.URLField(max_length=200, allow_blank=True, default="")

    def validate_stages(self, stages: list[str]) -> list[str]:
        if len(set(stages)) != len(stages):
            raise serializers.ValidationError("Give each stage once.")
        if set(stages) & set(SERVICE_ROLES):
            raise serializers.ValidationError(f"These roles cannot be used for a stage: {', '.join(SERVICE_ROLES)}.")
        return stages

    def validate_downloaders(self, downloaders: list[str]) -> list[str]:
        if Role.AUDITOR in downloaders:
            raise serializers.ValidationError("Auditors cannot download packages.")
        return downloaders

    def validate_contact_email(self, address: str) -> str:
        if address and ('"' in address or not address.isprintable()):
            raise serializers.ValidationError(
                "Give an address without quotes and control characters, because mails are sent from it."
            )
        return address

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(self.initial_data) - set(self.fields))
        if unknown:
            raise serializers.ValidationError({name: ["Unknown field."] for name in unknown})
        return attrs


# --- Output ---


class PolicyOutput(serializers.Serializer[EgressPolicy]):
    version = serializers.IntegerField(help_text="0: the default, which nobody changed")
    stages = serializers.ListField(child=serializers.CharField())
    single_approval = serializers.BooleanField()
    max_downloads = serializers.IntegerField()
    download_window_days = serializers.IntegerField()
    request_expiry_days = serializers.IntegerField()
    file_types = serializers.ListField(child=serializers.CharField())
    max_files = serializers.IntegerField()
    max_file_bytes = serializers.IntegerField(allow_null=True)
    max_total_bytes = serializers.IntegerField(allow_null=True)
    min_reason_length = serializers.IntegerField()
    downloaders = serializers.ListField(child=serializers.CharField())
    release_format = serializers.ChoiceField(choices=EgressPolicy.Format.choices)
    contact_email = serializers.CharField()
    app_url = serializers.CharField()


class DecisionOutput(serializers.Serializer[Decision]):
    round = serializers.IntegerField()
    stage = serializers.SerializerMethodField(help_text="from 1")
    role = serializers.CharField()
    verdict = serializers.ChoiceField(choices=Decision.Verdict.choices)
    reason = serializers.CharField()
    by = serializers.CharField(source="by_name")
    at = UtcDateTimeField()
    voided_at = UtcDateTimeField(allow_null=True, help_text="they lost the right before anything was released")

    def get_stage(self, decision: Decision) -> int:
        return decision.stage + 1


class RequestLinks(serializers.Serializer[Any]):
    self = serializers.URLField()
    collection = serializers.URLField(allow_null=True)
    package = serializers.URLField(allow_null=True)
    manifest = serializers.URLField(allow_null=True)


class RequestOutput(serializers.Serializer[EgressRequest]):
    """Needs the `access.Actor` who reads it as `viewer` in its context."""

    id = serializers.UUIDField()
    tenant = serializers.CharField(source="tenant.slug")
    collection = serializers.CharField(source="collection_slug")
    collection_name = serializers.CharField()
    requester = serializers.CharField(source="requester_name")
    justification = serializers.CharField()
    status = serializers.ChoiceField(choices=State.choices)
    waits_for = serializers.SerializerMethodField()
    round = serializers.IntegerField()
    stages = serializers.ListField(child=serializers.CharField(), help_text="roles, in the order of decisions")
    stage = serializers.SerializerMethodField(help_text="from 1; null unless it is in review")
    awaited_role = serializers.CharField(help_text="who decides now; empty unless it is in review")
    file_count = serializers.IntegerField()
    total_length = serializers.IntegerField(help_text="plaintext bytes")
    content_sha256 = serializers.CharField(help_text="of names, lengths and digests of the round's files")
    created_at = UtcDateTimeField()
    submitted_at = UtcDateTimeField(help_text="of this round")
    changed_at = UtcDateTimeField(help_text="since when it is in its state")
    expires_at = UtcDateTimeField(allow_null=True, help_text="when it ends by itself")
    problem = serializers.CharField(help_text="what keeps it from going on; empty if nothing does")
    decisions = DecisionOutput(many=True)
    released_at = UtcDateTimeField(allow_null=True)
    available_until = UtcDateTimeField(allow_null=True)
    package_length = serializers.IntegerField(allow_null=True)
    package_sha256 = serializers.CharField(help_text="hex; empty until it is released")
    download_count = serializers.IntegerField()
    max_downloads = serializers.IntegerField()
    downloads_left = serializers.IntegerField()
    allowed_actions = serializers.SerializerMethodField()
    links = serializers.SerializerMethodField()

    @extend_schema_field(
        serializers.ChoiceField(choices=sorted({str(owner) for owner in NEXT_ACTORS.values() if owner}), allow_null=True)
    )
    def get_waits_for(self, request: EgressRequest) -> str | None:
        return NEXT_ACTORS[State(request.status)]

    def get_stage(self, request: EgressRequest) -> int | None:
        return request.stage + 1 if request.status == State.IN_REVIEW else None

    @extend_schema_field(serializers.ListField(child=serializers.ChoiceField(choices=list(access.ACTIONS))))
    def get_allowed_actions(self, request: EgressRequest) -> list[str]:
        return access.allowed_actions(self.context["viewer"], request)

    @extend_schema_field(RequestLinks)
    def get_links(self, request: EgressRequest) -> dict[str, str | None]:
        """Links that the reader may open."""
        http, actor, where = self.context["request"], self.context["viewer"], {"request_id": str(request.pk)}
        collection = request.collection_slug if access.can_see_collection(actor, request) else None
        package = access.can(access.check_can_fetch, actor, request)
        return {
            "self": absolute_url(http, "egress-request", **where),
            "collection": absolute_url(http, "collection", slug=collection) if collection else None,
            "package": absolute_url(http, "egress-package", **where) if package else None,
            "manifest": absolute_url(http, "egress-manifest", **where) if request.released_at else None,
        }


class ReadReceiptOutput(serializers.Serializer[Any]):
    by = serializers.CharField()
    at = UtcDateTimeField()


class StagedFileOutput(serializers.Serializer[StagedFile]):
    """Only for the schema. `RequestDetail.get_items` builds these objects itself, which is faster for thousands of files."""

    number = serializers.IntegerField()
    filename = serializers.CharField()
    content_type = serializers.CharField()
    length = serializers.IntegerField()
    sha256 = serializers.CharField()
    status = serializers.ChoiceField(choices=StagedFile.Status.choices, help_text="of its copy in staging")
    wiped_at = UtcDateTimeField(allow_null=True, help_text="the copy was listed as absent")
    opened_by = ReadReceiptOutput(many=True)
    links = serializers.DictField(child=serializers.URLField(allow_null=True))


class TransitionOutput(serializers.Serializer[Transition]):
    number = serializers.IntegerField()
    at = UtcDateTimeField()
    by = serializers.CharField(source="by_name")
    status = serializers.ChoiceField(source="to_status", choices=State.choices)
    round = serializers.IntegerField()
    stage = serializers.SerializerMethodField(help_text="from 1: that it came to, or left")
    reason = serializers.CharField()

    def get_stage(self, step: Transition) -> int:
        return step.stage + 1


class DownloadOutput(serializers.Serializer[Download]):
    by = serializers.CharField(source="by_name")
    at = UtcDateTimeField(source="granted_at")
    last_at = UtcDateTimeField(source="touched_at", help_text="when bytes last left, to within a minute")
    bytes_taken = serializers.SerializerMethodField(help_text="that left at most, those that left twice included")
    is_complete = serializers.SerializerMethodField(
        help_text="it may have all of the package; if not, some is missing for certain"
    )
    bytes_left = serializers.IntegerField(help_text="what a transfer that broke may still fetch")

    def get_bytes_taken(self, download: Download) -> int:
        return downloads.bytes_taken(download)

    def get_is_complete(self, download: Download) -> bool:
        return downloads.bytes_taken(download) >= (download.request.package_length or 0)


class NotificationOutput(serializers.Serializer[Mail]):
    kind = serializers.CharField()
    to = serializers.EmailField(source="recipient")
    copies = serializers.ListField(child=serializers.EmailField(), help_text="who gets it, too, in Cc")
    refused = serializers.ListField(child=serializers.EmailField(), help_text="those of them whom the mail server refused")
    state = serializers.ChoiceField(choices=MailState.choices)
    queued_at = UtcDateTimeField(source="created_at")
    sent_at = UtcDateTimeField(allow_null=True)


class EgressProgress(serializers.Serializer[Any]):
    """Of what goes on by itself: bytes that were copied to staging, or packed."""

    done = serializers.IntegerField()
    of = serializers.IntegerField()


class RequestDetail(RequestOutput):
    progress = EgressProgress(allow_null=True, source="progress_made", help_text="while it is submitted or approved")
    policy = PolicyOutput(help_text="as it was when this was submitted")
    file_types = serializers.SerializerMethodField()
    items = serializers.SerializerMethodField()
    timeline = TransitionOutput(many=True)
    downloads = DownloadOutput(many=True, source="downloads_made")
    notifications = NotificationOutput(many=True)

    @extend_schema_field(StagedFileOutput(many=True))
    def get_items(self, request: Any) -> list[dict[str, Any]]:
        moment = UtcDateTimeField().to_representation
        opened_by = defaultdict(list)
        for number, by, at in request.opened:
            opened_by[number].append({"by": by, "at": moment(at)})
        first = absolute_url(self.context["request"], "egress-item", request_id=str(request.pk), number="1")
        is_open = request.shown_round == request.round and access.can(
            access.check_can_read_items, self.context["viewer"], request
        )
        place = first.removesuffix("1/content") if is_open else ""
        return [
            {
                **item,
                "wiped_at": item["wiped_at"] and moment(item["wiped_at"]),
                "opened_by": opened_by[item["number"]],
                "links": {"content": f"{place}{item['number']}/content" if place else None},
            }
            for item in request.shown_items
        ]

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_file_types(self, request: EgressRequest) -> list[str]:
        return access.file_types(request)


class ManifestOutput(serializers.Serializer[EgressRequest]):
    manifest = serializers.SerializerMethodField()
    signed = serializers.CharField(source="manifest", help_text="manifest.json of the package, which the signature is of")
    signature = serializers.CharField(help_text="Ed25519, base64: docs/egress.md")

    @extend_schema_field(serializers.DictField())
    def get_manifest(self, request: EgressRequest) -> Any:
        return json.loads(request.manifest)


class SigningKeyOutput(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="`signed_with` of a manifest")
    public_key = serializers.CharField(help_text="Ed25519, PEM")
    created_at = UtcDateTimeField()


class SigningKeysOutput(serializers.Serializer[Any]):
    results = SigningKeyOutput(many=True)
