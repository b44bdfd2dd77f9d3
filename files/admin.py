"""Shows collections and what waits to be erased: no content, no filenames, nothing to edit. Changes go through the API."""

# mypy: disable-error-code=type-arg
# Outside the stubs, ModelAdmin takes no type argument.

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from files.models import Collection, Erasure, Upload


class ReadOnly(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Collection)
class CollectionAdmin(ReadOnly):
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


@admin.register(Upload)
class UploadAdmin(ReadOnly):
    list_display = ("object_id", "collection", "started_by", "started_at", "heartbeat_at")
    list_select_related = ("collection", "started_by")
    ordering = ("heartbeat_at",)


@admin.register(Erasure)
class ErasureAdmin(ReadOnly):
    list_display = ("object_key", "store", "due_at", "attempts", "lease_at")
    ordering = ("due_at",)
