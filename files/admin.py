"""Shows collections and what waits to be erased: no content, no filenames, nothing to edit. Changes go through the API."""

# mypy: disable-error-code=type-arg
# Outside the stubs, ModelAdmin takes no type argument.

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
    search_help_text = "Id, display name, tenant or uuid."
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
    """Who was given what. Taking it away is a button; giving is the API's and `grantaccess`'s."""

    list_display = ("collection", "of_one_file", "user", "level", "is_external", "created_at", "created_by")
    list_filter = ("level", "collection__tenant")
    list_select_related = ("collection", "user", "created_by")
    search_fields = ("collection__slug", "user__username", "user__email")
    search_help_text = "Id of a collection, or a person."
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

    @admin.action(description="Take away", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Grant]) -> None:
        for grant in queryset:
            grants.revoke(grant, by=cast(User, request.user), now=timezone.now(), as_operator=True)
        self.message_user(request, f"{len(queryset)} taken away.")


@admin.register(Hold)
class HoldAdmin(ReadOnlyAdmin):
    """What stays as it is, and why. The tenant's admins place and lift legal holds, over the API."""

    list_display = ("collection", "of_one_file", "kind", "ref", "reason", "placed_at", "placed_by")
    list_filter = ("kind", "collection__tenant")
    list_select_related = ("collection", "placed_by")
    search_fields = ("collection__slug", "ref", "reason")
    search_help_text = "Id of a collection, a matter's number, or words of the reason."
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
