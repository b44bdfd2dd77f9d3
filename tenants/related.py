from typing import Any, TypeVar

from django.db.models import Model, QuerySet


Thing = TypeVar("Thing", bound=Model)


def with_only(things: QuerySet[Thing], **columns: str) -> QuerySet[Thing]:
    """Loads along what rows point at, but of each only one column: most of the time of a long list goes into columns."""
    unread = []
    for relation, column in columns.items():
        related: Any = things.model._meta.get_field(relation).related_model
        unread += [f"{relation}__{each.name}" for each in related._meta.concrete_fields if each.name not in {"id", column}]
    return things.select_related(*columns).defer(*unread)
