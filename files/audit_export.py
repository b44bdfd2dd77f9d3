"""An audit trail as CSV, for spreadsheets: page by page of the chain, in flat memory and without a long transaction (F-62).

It stands here, above the trail itself, because it is a transfer as downloads are: it takes a slot, so that the API keeps its
threads, asks again whether its reader may go on, and is cut visibly when something fails.
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

from files.downloads import begin
from files.http.responses import Answer, byte_headers
from files.http.streaming import SLOTS, Transfer, return_connection
from tenants import access, audit
from tenants.models import AuditEvent, Tenant, User


PAGE: Final = 2000  # events that are in memory at once
COLUMNS: Final = [
    "seq", "at", "action", "actor", "actor_id", "target_kind", "target_id", "request_id", "facts", "hash", "prev_hash",
]  # fmt: skip
# Without it Excel takes UTF-8 for the code page of its machine. Programs have the JSON list.
BOM: Final = "\ufeff"
# What a spreadsheet takes for a formula, in its full-width forms too (OWASP, "CSV Injection"): at the beginning of a cell, and
# behind a semicolon, where a German Excel begins another one whatever the quotes say.
FORMULA: Final = re.compile("(^|;)(?=[=+@\t\r\n＝＋－＠-])")  # noqa: RUF001  they are meant


def open_export(tenant: Tenant | None, *, by: User, wanted: dict[str, Any], head: bool, now: datetime) -> Answer:
    """The chain of a tenant, or of the platform, as far as `wanted` wants it, oldest first. On record before the first byte."""
    filename = f"{tenant.slug if tenant else 'platform'}-audit-{now:%Y-%m-%d}.csv"
    headers = byte_headers("attachment", filename, "text/csv; charset=utf-8; header=present")
    if head:
        return Answer(HTTPStatus.OK, headers)
    # An end that stands, or the export of a busy chain would never come to one.
    last = audit.events(tenant).order_by("-seq").values_list("seq", flat=True).first() or 0
    events = audit.events(tenant, **wanted).filter(seq__lte=last)
    body = Transfer(_pieces(events), length=None, still_allowed=partial(_may_go_on, by, tenant), slots=SLOTS)
    begin(body, partial(_record, tenant, by, wanted, last, now))
    return Answer(HTTPStatus.OK, headers, body)


def _pieces(events: QuerySet[AuditEvent]) -> Generator[bytes, None, None]:
    head, seq, is_more = BOM + _lines([COLUMNS]), 0, True
    while is_more:
        page = list(events.filter(seq__gt=seq).order_by("seq")[:PAGE])
        return_connection()
        yield (head + _lines(_row(event) for event in page)).encode()
        is_more = len(page) == PAGE
        head, seq = "", page[-1].seq if page else seq


def _lines(rows: Iterable[list[str]]) -> str:
    """As RFC 4180 has it."""
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([FORMULA.sub(r"\1'", cell) for cell in row] for row in rows)
    return text.getvalue()


def _row(event: AuditEvent) -> list[str]:
    at = event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    facts = _printable(json.dumps(audit.facts_of(event.body), ensure_ascii=False))
    columns = {name: str(getattr(event, name)) for name in COLUMNS if name != "facts"} | {"at": at, "facts": facts}
    return [columns[name] for name in COLUMNS]


def _printable(text: str) -> str:
    """JSON with names as people write them, and what no cell should hold (control characters, lone surrogates) escaped."""
    return text if text.isprintable() else "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _may_go_on(user: User, tenant: Tenant | None) -> bool:
    """Or the refusal of what was allowed when it began (INV-16)."""
    if tenant:
        access.check_can_audit(user, tenant)
    else:
        access.check_can_audit_platform(user)
    return True


def _record(tenant: Tenant | None, by: User, wanted: dict[str, Any], last: int, now: datetime) -> None:
    filters = [f"{name}={value}" for name, value in wanted.items()]
    audit.record("audit.export", by=by, tenant=tenant, target=tenant, now=now, last=last, filters=filters)
