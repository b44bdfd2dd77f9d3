"""Filters and ordering of lists. Invalid values are an error and are never ignored."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django_filters import rest_framework as filters
from django_filters.fields import IsoDateTimeField
from rest_framework.filters import OrderingFilter
from rest_framework.request import Request
from rest_framework.views import APIView

from files.models import GRANTABLE_LEVELS, Collection, Grant, Level, StoredFile
from tenants.errors import Invalid


class DateTimeFilterField(IsoDateTimeField):
    def to_python(self, value: Any) -> datetime | None:
        moment: datetime | None = super().to_python(value)
        try:
            return moment and moment.astimezone(UTC)
        except OverflowError:  # valid in its own time zone, but outside the calendar in UTC
            raise ValidationError(self.error_messages["invalid"], code="invalid") from None


class DateTimeFilter(filters.IsoDateTimeFilter):
    field_class = DateTimeFilterField


class TrueFalseFilter(filters.TypedChoiceFilter):
    """Accepts only `true` and `false`. The filter of django-filter ignores all other values."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=[(word, word) for word in ("true", "false")], coerce="true".__eq__, **kwargs)


class CollectionFilter(filters.FilterSet):
    tenant = filters.CharFilter(field_name="tenant__slug", max_length=50)
    search = filters.CharFilter(field_name="display_name", lookup_expr="icontains", max_length=200)
    purge_before = DateTimeFilter(field_name="purge_at", lookup_expr="lt")

    class Meta:
        model = Collection
        fields: list[str] = []


class FileFilter(filters.FilterSet):
    search = filters.CharFilter(field_name="filename", lookup_expr="icontains", max_length=200)
    content_type = filters.CharFilter(max_length=127)
    status = filters.ChoiceFilter(choices=StoredFile.Status.choices)
    keep_before = DateTimeFilter(field_name="keep_until", lookup_expr="lt")

    class Meta:
        model = StoredFile
        fields: list[str] = []


class GrantFilter(filters.FilterSet):
    user = filters.CharFilter(field_name="user__username", max_length=150)
    level = filters.ChoiceFilter(choices=[(level.label, level.label) for level in GRANTABLE_LEVELS], method="filter_level")
    everyone = TrueFalseFilter(field_name="user", lookup_expr="isnull")
    external = TrueFalseFilter(method="filter_external")

    class Meta:
        model = Grant
        fields: list[str] = []

    def filter_level(self, queryset: QuerySet[Grant], name: str, value: str) -> QuerySet[Grant]:
        return queryset.filter(level=Level[value.upper()])

    def filter_external(self, queryset: QuerySet[Grant], name: str, value: bool) -> QuerySet[Grant]:  # noqa: FBT001  django-filter's
        external = Q(user__isnull=False, membership=None)
        return queryset.filter(external if value else ~external)


class StrictOrdering(OrderingFilter):
    def remove_invalid_fields(self, queryset: QuerySet[Any], fields: Iterable[str], view: APIView, request: Request) -> list[str]:
        requested = list(fields)
        valid = super().remove_invalid_fields(queryset, requested, view, request)
        if valid != requested:
            names = ", ".join(name for name, _ in self.get_valid_fields(queryset, view))
            raise Invalid("ordering", f"Order by one of {names}. Put a hyphen before the name for descending order.")
        return valid
