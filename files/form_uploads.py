"""Uploads of several files in one form. Each file succeeds or fails separately."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rest_framework.exceptions import APIException

from files import errors, uploads
from files.http.form_data import Part, read_field, read_form
from files.models import Collection, StoredFile
from tenants.errors import Invalid
from tenants.models import User


MAX_NOTES = 10_000


@dataclass
class Outcome:
    filename: str
    file: StoredFile | None = None
    problem: APIException | None = None


def receive(
    environ: dict[str, Any], *, by: User, choose_collection: Callable[[dict[str, str]], Collection], now: datetime
) -> list[Outcome]:
    """Stores the parts named `file`, in their order. `choose_collection` receives the fields before the first of them.

    A file is committed when the next file part starts, so that `notes` can follow the last file. Errors of the request as a whole
    are raised. Files that were committed before such an error remain.

    Raises: BadBody, BodyTimeout, DatabaseRestored, ForeignVault, FormTooLarge, Held, Invalid, KeyUnavailable, NameTaken,
    NotFound, PreconditionFailed, PreconditionRequired, QuotaExceeded, Refused, StorageUnavailable, StoreRefused,
    StoreUnavailable, TooLarge, UnsupportedBody.
    """
    fields: dict[str, str] = {}
    collection: Collection | None = None
    outcomes: list[Outcome] = []
    pending: _PendingFile | None = None
    try:
        for part in read_form(environ):
            if part.filename is None:
                _take_field(fields, part, is_late=collection is not None)
                continue
            if part.name != "file":
                raise Invalid(part.name or "file", "Send files in parts named `file`.", code="unknown_field")
            if collection is None:
                collection = choose_collection(fields)
            if pending:
                outcomes.append(pending.commit(fields))
                pending = None
            pending = _PendingFile(part, by=by, collection=collection, notes=fields.get("notes", ""), now=now)
        if pending is None:
            raise Invalid("file", "Send at least one part named `file` with a filename.", code="required")
        last, pending = pending, None
        return [*outcomes, last.commit(fields)]
    finally:
        if pending:
            pending.abandon()


class _PendingFile:
    """A file of the form that is not committed yet."""

    def __init__(self, part: Part, *, by: User, collection: Collection, notes: str, now: datetime) -> None:
        self._outcome = Outcome(part.filename or "")
        self._by, self._now = by, now
        self._session: uploads.UploadSession | None = None
        try:
            self._session = uploads.begin(
                by=by,
                collection=collection,
                filename=part.filename or "",
                content_type=part.content_type,
                notes=notes,
                size=None,
                conditions=None,
                now=now,
            )
            for piece in part.data:
                self._session.write(piece)
        except BaseException as error:
            self.abandon()
            if not isinstance(error, APIException) or isinstance(
                error, (errors.BadBody, errors.BodyTimeout, errors.FormTooLarge)
            ):
                raise  # the rest of the request cannot be read
            self._outcome.problem = error

    def commit(self, fields: dict[str, str]) -> Outcome:
        if self._session and self._outcome.problem is None:
            try:
                with self._session:
                    self._outcome.file = self._session.commit(by=self._by, now=self._now, notes=fields.get("notes"))
            except APIException as problem:
                self._outcome.problem = problem
        return self._outcome

    def abandon(self) -> None:
        if self._session:
            self._session.abandon()


def _take_field(fields: dict[str, str], part: Part, *, is_late: bool) -> None:
    if is_late and part.name in {"collection", "tenant"}:
        raise Invalid(part.name, "Send this field before the first file.", code="late_field")
    value = read_field(part)
    if "\x00" in value or len(value) > MAX_NOTES:
        raise Invalid(part.name, f"Use at most {MAX_NOTES} characters and no NUL characters.")
    fields[part.name] = value
