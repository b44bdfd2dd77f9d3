"""Read-only admin pages of collections, grants, holds, uploads and pending deletions, without content and filenames.

Changes are made through the API. The only action here revokes grants.
"""

# mypy: disable-error-code=type-arg
# ModelAdmin is only generic in the stubs, so it cannot have a type argument at run time.

from typing import Any, cast

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from files import grants
from files.models import Collection, Grant, Hold, PendingDeletion, Upload
from tenants.models import User


class ReadOnlyAdmin(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Collection)
class CollectionAdmin(ReadOnlyAdmin):
    list_display = ("slug", "tenant", "display_name", "status", "egress_status", "file_count", "total_length", "purge_at")
    list_filter = ("status", "egress_status", "cipher", "tenant")
    list_select_related = ("tenant",)
    search_fields = ("slug", "display_name", "tenant__slug", "uuid")
    search_help_text = "Id, display name, tenant or UUID"
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = (
        "slug", "uuid", "tenant", "display_name", "status", "egress_status", "cipher", "file_count", "total_length", "purge_at",
        "created_at", "created_by", "deleted_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Collection] = super().get_queryset(request)
        return found.filter(kind=Collection.Kind.FILES)


@admin.register(Grant)
class GrantAdmin(ReadOnlyAdmin):
    """Grants, with an action that revokes them. Use the API or the command `grantaccess` to create grants."""

    list_display = ("collection", "of_one_file", "user", "level", "is_external", "created_at", "created_by")
    list_filter = ("level", "collection__tenant")
    list_select_related = ("collection", "user", "created_by")
    search_fields = ("collection__slug", "user__username", "user__email")
    search_help_text = "Id of a collection, username or email address"
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = ("id", "collection", "of_one_file", "user", "is_external", "level", "created_at", "created_by")
    actions = ("revoke",)

    @admin.display(boolean=True, description="one file only")
    def of_one_file(self, grant: Grant) -> bool:
        return grant.file_id is not None

    @admin.display(boolean=True, description="external")
    def is_external(self, grant: Grant) -> bool:
        return grant.is_external

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, User) and request.user.is_superuser

    @admin.action(description="Revoke selected grants", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Grant]) -> None:
        for grant in queryset:
            grants.revoke_grant(grant, by=cast(User, request.user), now=timezone.now(), as_operator=True)
        self.message_user(request, f"Revoked grants: {len(queryset)}.")


@admin.register(Hold)
class HoldAdmin(ReadOnlyAdmin):
    """Holds and their reasons. Admins of the tenant place and lift legal holds through the API."""

    list_display = ("collection", "of_one_file", "kind", "ref", "reason", "placed_at", "placed_by")
    list_filter = ("kind", "collection__tenant")
    list_select_related = ("collection", "placed_by")
    search_fields = ("collection__slug", "ref", "reason")
    search_help_text = "Id of a collection, reference, or part of the reason"
    ordering = ("-placed_at",)
    show_full_result_count = False
    fields = ("id", "collection", "of_one_file", "kind", "ref", "reason", "placed_at", "placed_by")

    @admin.display(boolean=True, description="one file only")
    def of_one_file(self, hold: Hold) -> bool:
        return hold.file_id is not None


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    list_display = ("object_id", "collection", "started_by", "started_at", "heartbeat_at")
    list_select_related = ("collection", "started_by")
    ordering = ("heartbeat_at",)


@admin.register(PendingDeletion)
class PendingDeletionAdmin(ReadOnlyAdmin):
    list_display = ("object_key", "store", "due_at", "attempts", "lease_at")
    ordering = ("due_at",)
