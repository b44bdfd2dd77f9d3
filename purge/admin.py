"""Shows what is being destroyed and the certificates. Nothing to edit: what began cannot be stopped."""

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
    search_help_text = "Id, display name or uuid that the collection had."
    ordering = ("-started_at",)
    show_full_result_count = False
    fields = (
        "id", "tenant", "slug", "display_name", "collection_uuid", "file_count", "total_length", "unencrypted_count", "reason",
        "due_at", "started_at", "began_by", "status", "blocked_by", "erased", "completed_at", "certificate", "signature",
    )  # fmt: skip
    readonly_fields = ("erased",)
    actions = ("retry_blocked",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Destruction] = super().get_queryset(request)
        return found.annotate(total_erased=Sum("shards__erased"))

    @admin.display(description="objects and versions erased")
    def erased(self, destruction: Any) -> int:
        return destruction.total_erased or 0

    def has_retry_blocked_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, User) and request.user.is_superuser

    @admin.action(description="Retry blocked destructions", permissions=["retry_blocked"])
    def retry_blocked(self, request: HttpRequest, queryset: QuerySet[Destruction]) -> None:
        tried = sum(destroying.retry_blocked(each, by=cast(User, request.user), now=timezone.now()) for each in queryset)
        self.message_user(request, f"{tried} will be tried again.")
