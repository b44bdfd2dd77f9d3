"""The admin pages of destructions and certificates. They are read-only: a destruction cannot be cancelled."""

from typing import Any, cast

from django.contrib import admin
from django.db.models import QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone

from files.admin import ReadOnlyAdmin
from purge import destruction as destroying
from purge.models import Destruction
from tenants.models import User


@admin.register(Destruction)
class DestructionAdmin(ReadOnlyAdmin):
    list_display = (
        "slug",
        "tenant",
        "reason",
        "status",
        "started_at",
        "completed_at",
        "file_count",
        "total_length",
        "erased",
        "blocked_by",
    )
    list_filter = ("status", "reason", "tenant")
    list_select_related = ("tenant",)
    search_fields = ("slug", "display_name", "collection_uuid")
    search_help_text = "Former id, display name or UUID of the collection."
    ordering = ("-started_at",)
    show_full_result_count = False
    fields = (
        "id", "tenant", "slug", "display_name", "collection_uuid", "file_count", "total_length", "unencrypted_count", "reason",
        "due_at", "started_at", "started_by", "status", "blocked_by", "erased", "completed_at", "certificate", "signature",
    )  # fmt: skip
    readonly_fields = ("erased",)
    actions = ("retry_blocked",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Destruction] = super().get_queryset(request)
        return found.annotate(total_erased=Sum("shards__erased"))

    @admin.display(description="deleted objects and versions")
    def erased(self, destruction: Any) -> int:
        return destruction.total_erased or 0

    def has_retry_blocked_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, User) and request.user.is_superuser

    @admin.action(description="Retry blocked destructions", permissions=["retry_blocked"])
    def retry_blocked(self, request: HttpRequest, queryset: QuerySet[Destruction]) -> None:
        count = sum(destroying.retry_blocked(each, by=cast(User, request.user), now=timezone.now()) for each in queryset)
        self.message_user(request, f"{count} destructions will be retried.")
