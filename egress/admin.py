"""Read-only admin pages of egress requests and policies. Actions of operators call services."""

# mypy: disable-error-code=type-arg
# Outside the stubs, InlineModelAdmin takes no type argument.

from collections.abc import Callable
from typing import Any, ClassVar, cast

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from rest_framework.exceptions import APIException
from rest_framework.serializers import Serializer

from egress import services
from egress.models import Decision, Download, EgressPolicy, EgressRequest, StagedFile, Transition
from egress.serializers import OptionalReasonInput, ReasonInput
from files.admin import ReadOnlyAdmin
from tenants.models import User


class ReadOnlyInline(admin.TabularInline):
    extra = 0

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StageInline(ReadOnlyInline):
    readonly_fields = ("stage_number",)

    @admin.display(description="stage")
    def stage_number(self, found: Transition | Decision) -> int:
        """Counts from 1, as in the API and the mails."""
        return found.stage + 1


class TransitionsInline(StageInline):
    model = Transition
    verbose_name_plural = "timeline"
    fields = ("number", "at", "from_status", "to_status", "round", "stage_number", "by_name", "reason")
    ordering = ("number",)


class DecisionsInline(StageInline):
    model = Decision
    fields = ("at", "round", "stage_number", "role", "verdict", "reason", "by_name", "by_email", "content_sha256", "voided_at")
    ordering = ("at",)


class DownloadsInline(ReadOnlyInline):
    model = Download
    fields = ("granted_at", "by_name", "touched_at", "bytes_left")
    ordering = ("granted_at",)


@admin.register(EgressRequest)
class EgressRequestAdmin(ReadOnlyAdmin):
    list_display = (
        "id", "tenant", "collection_slug", "requester_name", "status", "awaited_role", "changed_at", "expires_at", "downloaded",
    )  # fmt: skip
    list_filter = ("status", "awaited_role", "tenant")
    list_select_related = ("tenant",)
    search_fields = ("id", "collection_slug", "collection_name", "requester_name")
    search_help_text = "Id of a request, id or name of a collection, or requester"
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = (
        "id", "tenant", "collection_slug", "collection_name", "collection_uuid", "requester_name", "justification", "status",
        "awaited_role", "stages", "round", "problem", "created_at", "submitted_at", "changed_at", "expires_at",
        "files", "total_length", "content_sha256", "mails", "policy", "attempts", "lease_at", "released_at", "available_until",
        "package_length", "package_sha256", "signature", "downloaded",
    )  # fmt: skip
    readonly_fields = ("files", "mails", "downloaded")
    inlines = (TransitionsInline, DecisionsInline, DownloadsInline)
    actions = ("build_again", "revoke")
    change_form_template = "admin/egress/request.html"  # has the actions as buttons

    @admin.display(description="downloads")
    def downloaded(self, found: EgressRequest) -> str:
        return f"{found.download_count} of {found.max_downloads}"

    @admin.display
    def files(self, found: EgressRequest) -> SafeString:
        """A link, because there may be ten thousand files."""
        url = reverse("admin:egress_stagedfile_changelist")
        return format_html('<a href="{}?request__id__exact={}">{} in this round</a>', url, found.pk, found.file_count)

    @admin.display
    def mails(self, found: EgressRequest) -> SafeString:
        return format_html('<a href="{}?q={}">delivery status</a>', reverse("admin:tenants_mail_changelist"), found.pk)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, User) and request.user.is_superuser

    @admin.action(description="Build the package again", permissions=["operate"])
    def build_again(self, request: HttpRequest, queryset: QuerySet[EgressRequest]) -> TemplateResponse | None:
        return self._with_reason(request, queryset, "Build the package again", services.retry, OptionalReasonInput)

    @admin.action(description="Revoke", permissions=["operate"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[EgressRequest]) -> TemplateResponse | None:
        return self._with_reason(request, queryset, "Revoke", services.revoke, ReasonInput)

    def _with_reason(
        self,
        request: HttpRequest,
        queryset: QuerySet[EgressRequest],
        title: str,
        service: Callable[..., EgressRequest],
        shape: type[Serializer[Any]],
    ) -> TemplateResponse | None:
        """Shows a form for the reason, then calls the service for each request. An error does not stop the other requests."""
        if "reason" not in request.POST:
            context = self.admin_site.each_context(request) | {"title": title, "requests": queryset}
            return TemplateResponse(request, "admin/egress/reason.html", context)
        for found in queryset:
            try:
                given = shape(data={"reason": request.POST["reason"]})
                given.is_valid(raise_exception=True)
                service(found, reason=given.validated_data["reason"], by=cast(User, request.user), now=timezone.now())
            except APIException as error:
                self.message_user(request, f"{title}: {found}: {_error_text(error)}", messages.ERROR)
            else:
                self.message_user(request, f"{title}: {found}: done.")
        return None


def _error_text(error: APIException) -> str:
    """The message without the field name, because the form has one field."""
    detail = error.detail
    if isinstance(detail, dict):
        return " ".join(str(problem) for problems in detail.values() for problem in problems)
    return str(detail)


@admin.register(StagedFile)
class StagedFileAdmin(ReadOnlyAdmin):
    """Files of a request and the status of their copies. The page of the request links here."""

    list_display = ("number", "round", "filename", "length", "status", "wiped_at", "opened_by", "collection")
    list_filter = ("status",)
    list_select_related = ("request",)
    ordering = ("request", "-round", "number")
    show_full_result_count = False
    fields = (
        "request_id", "round", "number", "filename", "content_type", "length", "sha256", "file_uuid", "object_id", "status",
        "store", "object_key", "wiped_at", "opened_by",
    )  # fmt: skip
    readonly_fields: ClassVar = ("request_id", "opened_by")

    def get_queryset(self, request: HttpRequest) -> QuerySet[StagedFile]:
        found: QuerySet[StagedFile] = super().get_queryset(request)
        return found.prefetch_related("receipts")

    @admin.display
    def collection(self, item: StagedFile) -> str:
        return item.request.collection_slug

    @admin.display
    def opened_by(self, item: StagedFile) -> str:
        return ", ".join(sorted(opening.by_name for opening in item.receipts.all()))


@admin.register(EgressPolicy)
class EgressPolicyAdmin(ReadOnlyAdmin):
    """Policies that were changed from the default. Admins of a tenant set its policy through the API."""

    list_display = ("tenant", "version", "stages", "single_approval", "max_downloads", "release_format")
    list_select_related = ("tenant",)
    search_fields = ("tenant__slug",)
    ordering = ("tenant__slug",)
    show_full_result_count = False
    fields = (
        "tenant", "version", "stages", "single_approval", "max_downloads", "download_window_days", "request_expiry_days",
        "file_types", "max_files", "max_file_bytes", "max_total_bytes", "min_reason_length", "downloaders", "release_format",
        "contact_email", "app_url",
    )  # fmt: skip
