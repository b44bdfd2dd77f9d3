"""The OpenAPI schema: what drf-spectacular cannot see. Every operation may answer with a problem document."""

from typing import Any

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
        "code": {"type": "string", "description": "what programs should look at"},
        "errors": {
            "type": "object",
            "description": "by field",
            "additionalProperties": {
                "type": "array",
                "items": {"type": "object", "properties": {"detail": {"type": "string"}, "code": {"type": "string"}}},
            },
        },
    },
}


class Schema(AutoSchema):
    def get_tags(self) -> list[str]:
        parts = [part for part in self.path.removeprefix("/api/v1/").split("/") if part and not part.startswith("{")]
        return parts[:1]

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        if operation is not None:
            operation["responses"]["default"] = {
                "description": "a problem",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
        return operation


def add_problem(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    result["components"].setdefault("schemas", {})["Problem"] = PROBLEM
    return result
