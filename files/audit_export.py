"""Streams an audit trail as CSV for spreadsheets. Reads page by page, with constant memory and no long transaction (F-62).

The export is in this app because it is a transfer like a download: it takes a transfer slot, which keeps threads free for the
API, rechecks access while it runs, and visibly breaks off after an error.
"""

import csv
import json
import re
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from io import StringIO
from typing import Any, Final

from django.db.models import QuerySet

from files.downloads import start_transfer
from files.http.responses import ByteResponse, byte_headers
from files.http.streaming import SLOTS, Transfer, return_connection
from tenants import access, audit
from tenants.models import AuditEvent, Tenant, User


PAGE_SIZE: Final = 2000  # events in memory
COLUMNS: Final = [
    "seq", "at", "action", "actor", "actor_id", "target_kind", "target_id", "request_id", "facts", "hash", "prev_hash",
]  # fmt: skip
# Without a byte order mark, Excel reads the file in the code page of its machine. Programs should use the JSON list instead.
BOM: Final = "\ufeff"
# Characters that start a formula in a spreadsheet, also in full width (OWASP, "CSV Injection"). They are escaped at the start of
# a cell and after a semicolon, because German versions of Excel split cells at semicolons even inside quotes.
FORMULA: Final = re.compile("(^|;)(?=[=+@\t\r\n＝＋－＠-])")  # noqa: RUF001  the full-width characters are intended


def open_export(tenant: Tenant | None, *, by: User, filters: dict[str, Any], head: bool, now: datetime) -> ByteResponse:
    """Streams the events of a tenant or, if `tenant` is None, of the platform that match `filters`, oldest first.

    The caller has checked access. The export is recorded before the first byte is sent.

    Raises: TransfersFull.
    """
    filename = f"{tenant.slug if tenant else 'platform'}-audit-{now:%Y-%m-%d}.csv"
    headers = byte_headers("attachment", filename, "text/csv; charset=utf-8; header=present")
    if head:
        return ByteResponse(HTTPStatus.OK, headers)
    # Stop at the current last event. Otherwise the export of a busy chain might never end.
    last = audit.events(tenant).order_by("-seq").values_list("seq", flat=True).first() or 0
    events = audit.events(tenant, **filters).filter(seq__lte=last)
    body = Transfer(_pieces(events), length=None, still_allowed=partial(_is_still_allowed, by, tenant), slots=SLOTS)
    start_transfer(body, partial(_record, tenant, by, filters, last, now))
    return ByteResponse(HTTPStatus.OK, headers, body)


def _pieces(events: QuerySet[AuditEvent]) -> Generator[bytes, None, None]:
    head, seq, is_more = BOM + _lines([COLUMNS]), 0, True
    while is_more:
        page = list(events.filter(seq__gt=seq).order_by("seq")[:PAGE_SIZE])
        return_connection()
        yield (head + _lines(_row(event) for event in page)).encode()
        is_more = len(page) == PAGE_SIZE
        head, seq = "", page[-1].seq if page else seq


def _lines(rows: Iterable[list[str]]) -> str:
    """CSV lines as in RFC 4180, with formulas escaped by an apostrophe."""
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([FORMULA.sub(r"\1'", cell) for cell in row] for row in rows)
    return text.getvalue()


def _row(event: AuditEvent) -> list[str]:
    at = event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    facts = _printable(json.dumps(audit.facts_of(event.body), ensure_ascii=False))
    columns = {name: str(getattr(event, name)) for name in COLUMNS if name != "facts"} | {"at": at, "facts": facts}
    return [columns[name] for name in COLUMNS]


def _printable(text: str) -> str:
    """Escapes control characters and lone surrogates in JSON, and leaves other non-ASCII characters readable."""
    return text if text.isprintable() else "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _is_still_allowed(user: User, tenant: Tenant | None) -> bool:
    """Returns True, or raises the error of the access check if the user lost access during the export (INV-16)."""
    if tenant:
        access.check_can_audit(user, tenant)
    else:
        access.check_can_audit_platform(user)
    return True


def _record(tenant: Tenant | None, by: User, filters: dict[str, Any], last: int, now: datetime) -> None:
    texts = [f"{name}={value}" for name, value in filters.items()]
    audit.record("audit.export", by=by, tenant=tenant, target=tenant, now=now, last=last, filters=texts)
