import re
from collections.abc import Sequence
from typing import Any, Final

from django.core.exceptions import ValidationError as InvalidValue
from django.db import DataError
from django.db.models import QuerySet
from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

from tenants.errors import Invalid


NUMBER: Final = re.compile(r"[0-9]{1,4}", re.ASCII)
UNIQUE_COLUMNS: Final = {"id", "seq"}  # a list has the events of one chain, in which `seq` is unique
BASE64: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)


class Cursor(CursorPagination):
    """Pages `{next, previous, results}`. All pages cost the same, and rows do not shift while a client pages."""

    ordering = ("-created_at", "-id")
    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 1000
    offset_cutoff = 2**31  # DRF's default of 1,000 repeats the same page if more rows than that have equal values

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: APIView | None = None
    ) -> list[Any] | None:
        try:
            if not BASE64.fullmatch(request.query_params.get(self.cursor_query_param, "")):
                raise NotFound  # DRF would ignore invalid characters, and start at an arbitrary position
            return super().paginate_queryset(queryset, request, view)
        except (NotFound, InvalidValue, ValueError, TypeError, OverflowError, DataError):
            # The client can send any cursor, and its position need not be a valid value of the column.
            raise Invalid(
                "cursor", "The cursor does not belong to this list. Start from the first page.", code="bad_cursor"
            ) from None

    def decode_cursor(self, request: Request) -> Any:
        cursor = super().decode_cursor(request)
        if cursor and cursor.position is not None and self.ordering[0].endswith("_at"):
            time = parse_datetime(str(cursor.position))
            if time is None or is_naive(time):  # Django would assume a time zone, with a warning
                raise NotFound
        return cursor

    def get_page_size(self, request: Request) -> int:
        """Refuses a size above the maximum, because a client could take a smaller page for the whole list."""
        value = request.query_params.get(self.page_size_query_param)
        if value is None:
            return self.page_size
        if not NUMBER.fullmatch(value) or not 1 <= int(value) <= self.max_page_size:
            raise Invalid("page_size", f"Use a number from 1 to {self.max_page_size}.")
        return int(value)

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        """Returns the ordering of the client or the view, with `id` added to break ties."""
        self.ordering = getattr(view, "ordering", self.ordering)
        ordering = tuple(super().get_ordering(request, queryset, view))
        return (
            ordering
            if ordering[-1].lstrip("-") in UNIQUE_COLUMNS
            else (*ordering, "-id" if ordering[0].startswith("-") else "id")
        )

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        cursor, size = super().get_schema_operation_parameters(view)
        size["schema"] |= {"minimum": 1, "maximum": self.max_page_size, "default": self.page_size}
        return [cursor, size]
