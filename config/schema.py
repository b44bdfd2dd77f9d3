"""Customizes the OpenAPI schema. Each operation can respond with a problem document."""

from functools import cache
from typing import Any

from django.conf import settings
from django.utils import translation
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema


PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "identifies the error; programs should rely on it"},
        "errors": {
            "type": "object",
            "description": "errors by field",
            "additionalProperties": {
                "type": "array",
                "items": {"type": "object", "properties": {"detail": {"type": "string"}, "code": {"type": "string"}}},
            },
        },
    },
}


class CachedGenerator(SchemaGenerator):
    """Generates the document once per process, because it takes a second of CPU and is the same for all clients."""

    def get_schema(self, request: Any = None, public: bool = False) -> Any:  # noqa: FBT001, FBT002  as in its base class
        return _document()


@cache
def _document() -> Any:
    with translation.override(settings.LANGUAGE_CODE):  # not in the language of the first request
        return SchemaGenerator().get_schema(public=True)  # type: ignore[no-untyped-call]


class Schema(AutoSchema):
    def get_tags(self) -> list[str]:
        parts = [part for part in self.path.removeprefix("/api/v1/").split("/") if part and not part.startswith("{")]
        return parts[:1]

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        if operation is not None:
            operation["responses"]["default"] = {
                "description": "an error",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
        return operation


def add_problem(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    result["components"].setdefault("schemas", {})["Problem"] = PROBLEM
    return result
