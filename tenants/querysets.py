from typing import Any, TypeVar

from django.db.models import Model, QuerySet


Row = TypeVar("Row", bound=Model)


def select_related_only(rows: QuerySet[Row], **columns: str) -> QuerySet[Row]:
    """Joins related rows, and loads only the given column and the id of each. Long lists spend most of their time on columns."""
    deferred = []
    for relation, column in columns.items():
        related: Any = rows.model._meta.get_field(relation).related_model
        deferred += [f"{relation}__{field.name}" for field in related._meta.concrete_fields if field.name not in {"id", column}]
    return rows.select_related(*columns).defer(*deferred)
