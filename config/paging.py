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
UNIQUE: Final = {"id", "seq"}  # the latter in the one chain that is listed
BASE64: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)


class Cursor(CursorPagination):
    """`{next, previous, results}`: the last page costs what the first does, and nothing shifts while a client walks."""

    ordering = ("-created_at", "-id")
    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 1000
    offset_cutoff = 2**31  # among rows of one value; DRF's 1,000 serves the same page for ever once there are more of them

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: APIView | None = None
    ) -> list[Any] | None:
        try:
            if not BASE64.fullmatch(request.query_params.get(self.cursor_query_param, "")):
                raise NotFound  # DRF would skip what is no base64, and begin somewhere
            return super().paginate_queryset(queryset, request, view)
        except (NotFound, InvalidValue, ValueError, TypeError, OverflowError, DataError):
            # A cursor is the client's copy of our words: it may hold anything, and its position may be no value of the column.
            raise Invalid("cursor", "This is no cursor of this list.", code="bad_cursor") from None

    def decode_cursor(self, request: Request) -> Any:
        cursor = super().decode_cursor(request)
        if cursor and cursor.position is not None and self.ordering[0].endswith("_at"):
            moment = parse_datetime(str(cursor.position))
            if moment is None or is_naive(moment):  # Django would take it for some zone's, with a warning
                raise NotFound
        return cursor

    def get_page_size(self, request: Request) -> int:
        """A size that cannot be had is an error: whoever gets fewer than they asked for may take them for all."""
        wanted = request.query_params.get(self.page_size_query_param)
        if wanted is None:
            return self.page_size
        if not NUMBER.fullmatch(wanted) or not 1 <= int(wanted) <= self.max_page_size:
            raise Invalid("page_size", f"Ask for 1 to {self.max_page_size}.")
        return int(wanted)

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        """What the client or else the view orders by, and the row's number to break ties."""
        self.ordering = getattr(view, "ordering", self.ordering)
        ordering = tuple(super().get_ordering(request, queryset, view))
        return ordering if ordering[-1].lstrip("-") in UNIQUE else (*ordering, "-id" if ordering[0].startswith("-") else "id")

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        cursor, size = super().get_schema_operation_parameters(view)
        size["schema"] |= {"minimum": 1, "maximum": self.max_page_size, "default": self.page_size}
        return [cursor, size]
