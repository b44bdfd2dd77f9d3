"""The formats of API requests and responses. Rules are in the services, and serializers never save anything."""

from collections.abc import Callable, Iterable
from functools import cache, cached_property, partial
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from files.access import level_of
from files.models import GRANTABLE_LEVELS, Collection, DownloadLink, Grant, Hold, Level, StoredFile
from tenants.absolute_urls import absolute_url, quote_segment
from tenants.errors import Invalid
from tenants.serializers import PlainTextField, UtcDateTimeField
from vault.models import Cipher


class CreateCollectionInput(serializers.Serializer[Any]):
    tenant = serializers.CharField(
        required=False, max_length=50, help_text="slug; may be left out by who belongs to one tenant only"
    )
    display_name = PlainTextField(max_length=200)
    purge_at = UtcDateTimeField(required=False, allow_null=True)
    cipher = serializers.ChoiceField(choices=Cipher.choices, required=False)


class UpdateCollectionInput(serializers.Serializer[Any]):
    display_name = PlainTextField(max_length=200, required=False)
    purge_at = UtcDateTimeField(required=False, allow_null=True, help_text="null takes the date away")


class CollectionLinks(serializers.Serializer[Any]):
    self = serializers.URLField()
    files = serializers.URLField()
    archive = serializers.URLField()


class LevelField(serializers.ChoiceField):
    """A level, represented by its name."""

    def __init__(self, levels: Iterable[Level] = Level, **kwargs: Any) -> None:
        super().__init__(choices=[level.label for level in levels], **kwargs)

    def to_internal_value(self, data: Any) -> Level:  # type: ignore[override]  # the stubs only allow str
        return Level[super().to_internal_value(data).upper()]

    def to_representation(self, value: Any) -> str:
        return Level(value).label


# The level that each action needs. The services check the same levels.
COLLECTION_ACTIONS = {
    "archive": Level.VIEWER,
    "upload": Level.EDITOR,
    "update": Level.MANAGER,
    "share": Level.MANAGER,
    "delete": Level.MANAGER,
}
COLLECTION_WIDE_FIELDS = ("egress_status", "purge_at", "created_by", "file_count", "total_length", "is_held")
FILE_ACTIONS = {"download": Level.VIEWER, "update": Level.EDITOR, "delete": Level.EDITOR, "share": Level.MANAGER}


class CollectionOutput(serializers.Serializer[Collection]):
    """Fields about all files are null if the reader only has access to some of the files."""

    id = serializers.CharField(source="slug")
    tenant = serializers.CharField(source="tenant.slug")
    display_name = serializers.CharField()
    status = serializers.ChoiceField(choices=Collection.Status.choices)
    egress_status = serializers.ChoiceField(choices=Collection.EgressStatus.choices, allow_null=True)
    cipher = serializers.ChoiceField(choices=Cipher.choices)
    purge_at = UtcDateTimeField(allow_null=True)
    created_at = UtcDateTimeField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    deleted_at = UtcDateTimeField(allow_null=True)
    file_count = serializers.IntegerField(allow_null=True)
    total_length = serializers.IntegerField(allow_null=True, help_text="plaintext bytes")
    is_held = serializers.BooleanField(allow_null=True, help_text="something in it is under a hold: see holds/")
    my_level = LevelField()
    allowed_actions = serializers.SerializerMethodField()
    links = serializers.SerializerMethodField()

    def to_representation(self, instance: Collection) -> dict[str, Any]:
        shown = super().to_representation(instance)
        if level_of(instance) == Level.NAME:
            shown |= dict.fromkeys(COLLECTION_WIDE_FIELDS)
        return shown

    @extend_schema_field(serializers.ListField(child=serializers.ChoiceField(choices=[*COLLECTION_ACTIONS, "restore"])))
    def get_allowed_actions(self, collection: Collection) -> list[str]:
        if collection.status == Collection.Status.DELETED:
            return ["restore"]  # only managers can see a deleted collection
        my_level, blocked = level_of(collection), {"delete"} if collection.is_held else {}
        return [action for action, level in COLLECTION_ACTIONS.items() if my_level >= level and action not in blocked]

    @extend_schema_field(CollectionLinks)
    def get_links(self, collection: Collection) -> dict[str, str]:
        here = absolute_url(self.context["request"], "collection", slug=collection.slug)
        return {"self": here, "files": f"{here}files/", "archive": f"{here}archive.zip"}


class FileLinks(serializers.Serializer[Any]):
    self = serializers.URLField()
    preview = serializers.URLField()
    enclosure = serializers.URLField()
    content = serializers.URLField()


class FileOutput(serializers.Serializer[StoredFile]):
    id = serializers.UUIDField(source="uuid")
    collection = serializers.CharField(source="collection.slug")
    filename = serializers.CharField()
    content_type = serializers.CharField()
    length = serializers.IntegerField(help_text="plaintext bytes")
    sha256 = serializers.CharField(help_text="of the plaintext, hex")
    etag = serializers.CharField(help_text="of the content, for If-Match")
    notes = serializers.CharField()
    cipher = serializers.ChoiceField(choices=Cipher.choices)
    status = serializers.ChoiceField(choices=StoredFile.Status.choices)
    keep_until = UtcDateTimeField(allow_null=True, help_text="when it is destroyed; null: with its collection")
    created_at = UtcDateTimeField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    updated_at = UtcDateTimeField(help_text="of the content")
    updated_by = serializers.CharField(source="updated_by.username", default=None, allow_null=True)
    is_held = serializers.BooleanField(help_text="a hold keeps it as it is")
    my_level = LevelField()
    allowed_actions = serializers.SerializerMethodField()
    links = serializers.SerializerMethodField()

    @cached_property
    def collection_url(self) -> Callable[..., str]:
        """Builds the URL of a collection. Cached, because the files of a list are in the same collection."""
        return cache(partial(absolute_url, self.context["request"], "collection"))

    @extend_schema_field(serializers.ListField(child=serializers.ChoiceField(choices=[*FILE_ACTIONS])))
    def get_allowed_actions(self, file: StoredFile) -> list[str]:
        my_level, blocked = level_of(file), {"update", "delete"} if file.is_held else {}
        return [action for action, level in FILE_ACTIONS.items() if my_level >= level and action not in blocked]

    @extend_schema_field(FileLinks)
    def get_links(self, file: StoredFile) -> dict[str, str]:
        collection, name = self.collection_url(slug=file.collection.slug), quote_segment(file.filename)
        here = f"{collection}files/{name}/"
        return {
            "self": here,
            "preview": f"{here}preview/",
            "enclosure": f"{here}download/",
            "content": f"{collection}content/{name}",
        }


class GrantInput(serializers.Serializer[Any]):
    """Either `user` or `everyone`."""

    user = serializers.CharField(required=False, max_length=150, help_text="username")
    everyone = serializers.BooleanField(required=False, default=False, help_text="all members of the tenant")
    level = LevelField(GRANTABLE_LEVELS)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("user" in attrs) == attrs["everyone"]:
            raise Invalid("user", "Send either `user` or `everyone: true`.", code="required")
        return attrs


class GrantOutput(serializers.Serializer[Grant]):
    id = serializers.UUIDField()
    collection = serializers.CharField(source="collection.slug")
    file = serializers.CharField(source="file.filename", default=None, allow_null=True, help_text="null: all of the collection")
    user = serializers.CharField(source="user.username", default=None, allow_null=True)
    everyone = serializers.BooleanField(source="is_for_everyone", help_text="given to all members of the tenant")
    is_external = serializers.BooleanField(help_text="given to somebody of another tenant")
    level = LevelField(GRANTABLE_LEVELS)
    created_at = UtcDateTimeField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)


class HoldInput(serializers.Serializer[Any]):
    file = serializers.CharField(
        required=False, max_length=255, trim_whitespace=False, help_text="filename; left out: all that the collection has"
    )
    reason = PlainTextField(max_length=1000)
    ref = PlainTextField(max_length=200, required=False, default="", allow_blank=True, help_text="a matter's number")


class HoldOutput(serializers.Serializer[Hold]):
    id = serializers.UUIDField()
    kind = serializers.ChoiceField(choices=Hold.Kind.choices)
    file = serializers.CharField(source="file.filename", default=None, allow_null=True, help_text="null: all of the collection")
    reason = serializers.CharField()
    ref = serializers.CharField()
    placed_at = UtcDateTimeField()
    placed_by = serializers.CharField(source="placed_by.username", default=None, allow_null=True)


class UpdateFileInput(serializers.Serializer[Any]):
    """Absent and null leave a value as it is, except that null takes `keep_until` away; other members are ignored."""

    filename = serializers.CharField(required=False, allow_null=True, trim_whitespace=False, max_length=255)
    content_type = serializers.CharField(required=False, allow_null=True, max_length=127)
    notes = serializers.CharField(required=False, allow_null=True, allow_blank=True, trim_whitespace=False, max_length=10_000)
    keep_until = UtcDateTimeField(
        required=False, allow_null=True, help_text="when the file is destroyed; null takes the date away"
    )


class FileUploadResult(serializers.Serializer[Any]):
    filename = serializers.CharField()
    status = serializers.IntegerField(help_text="the status that this file alone would have been answered with")
    file = FileOutput(required=False)
    problem = serializers.DictField(required=False)


class FileUploadResults(serializers.Serializer[Any]):
    results = FileUploadResult(many=True)


class FileForm(serializers.Serializer[Any]):
    """multipart/form-data; `notes` counts for the file part before it and for those that follow it."""

    file = serializers.FileField(help_text="one or more parts of this name")
    notes = serializers.CharField(required=False)


class NamedFileForm(FileForm):
    collection = serializers.CharField(help_text="id or display name; has to come before the first file part")
    tenant = serializers.CharField(required=False, help_text="slug, if you belong to several; before the first file part")


class MintInput(serializers.Serializer[Any]):
    disposition = serializers.ChoiceField(
        choices=DownloadLink.Disposition.choices, required=False, default=DownloadLink.Disposition.ATTACHMENT
    )


class ArchiveInput(serializers.Serializer[Any]):
    file = serializers.ListField(
        child=serializers.CharField(max_length=255, trim_whitespace=False),
        required=False,
        allow_empty=False,
        max_length=10_000,
        help_text="filenames; all if left out",
    )


class LinkOutput(serializers.Serializer[Any]):
    url = serializers.URLField(help_text="works once, without any other credential")
    expires_in = serializers.IntegerField(help_text="seconds")


class UsageOutput(serializers.Serializer[Any]):
    collections = serializers.IntegerField(help_text="deleted ones too, until they are destroyed")
    file_count = serializers.IntegerField(help_text="what `quota_files` counts")
    quota_files = serializers.IntegerField(allow_null=True)
    total_length = serializers.IntegerField(help_text="plaintext bytes: what `quota_bytes` counts")
    quota_bytes = serializers.IntegerField(allow_null=True)
    uploads = serializers.IntegerField(help_text="in progress; they count once they are complete")
