"""Mails. A mail is a row, written in the transaction of the event that it reports. The tick sends it later.

A mail that cannot be sent does not affect the event (F-34). The row holds no secrets and no text. The function that is registered
for the kind of the mail creates both when the mail is sent.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.utils import parseaddr
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPResponseException
from typing import Final
from urllib.parse import urlencode
from uuid import NAMESPACE_URL, uuid4, uuid5

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.db import connection, transaction
from django.db.models import QuerySet
from django.template.loader import render_to_string
from django.utils import timezone

from tenants.models import Mail
from tenants.work.leases import LeaseLost, claim


log = logging.getLogger(__name__)

FIRST_DELAY: Final = timedelta(seconds=30)  # after a failed attempt; doubles with each attempt
MAX_DELAY: Final = timedelta(hours=1)
MAX_ATTEMPTS: Final = 80  # three days
RETENTION: Final = timedelta(days=30)
FOREVER: Final = timedelta.max  # as `once_per`: no second mail of this kind while the row of the first exists

Context = dict[str, str]  # of the templates; `contact`, if present, becomes the From address
ContextBuilder = Callable[[Mail, datetime], Context | None]
_context_builders: dict[str, ContextBuilder] = {}


class QuotedText(str):
    """A context value of several lines that a user wrote. It is quoted, so that it cannot imitate other parts of the mail.

    The text template places it on a line of its own, the HTML template in `<blockquote>{{ value|linebreaksbr }}</blockquote>`.
    """


class Message(EmailMultiAlternatives):
    refused: Sequence[str] = ()  # the Cc addresses that the mail server refused; the mail backend sets it (`config.mail`)


def context_builder(kind: str) -> Callable[[ContextBuilder], ContextBuilder]:
    """Registers the function that returns the context of the templates `mail/<kind>.txt` and `mail/<kind>.html`.

    The function returns None if the mail has become obsolete: `_drop` then removes it from the queue.
    """

    def register(builder: ContextBuilder) -> ContextBuilder:
        _context_builders[kind] = builder
        return builder

    return register


def queue(
    kind: str,
    *,
    to: str,
    now: datetime,
    due_at: datetime | None = None,
    once_per: timedelta | None = None,
    about: str = "",
    copies: Iterable[str] = (),
    **facts: str,
) -> None:
    """Queues a mail in the caller's transaction. `copies` are the Cc addresses.

    With `once_per`, at most one mail with the same kind, recipient and facts is queued in each period of that length. `about` is
    the UUID of the object that the mail reports on, for `mails_about`.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("Queue a mail in the transaction of the event that it reports.")
    pk = uuid4()
    if once_per is not None:
        # The other contender queues the same mail at the same time. Both derive the same id, and one insert is ignored.
        identity = f"{kind} {to} {sorted(facts.items())} {now.timestamp() // once_per.total_seconds()}{about}"
        pk = uuid5(NAMESPACE_URL, identity)
    mail = Mail(
        pk=pk,
        kind=kind,
        recipient=to,
        copies=sorted(set(copies) - {to}),
        about=about,
        facts=facts,
        created_at=now,
        due_at=due_at or now,
    )
    Mail.objects.bulk_create([mail], ignore_conflicts=True)


def mails_about(about: str) -> QuerySet[Mail]:
    """Returns the mails about an object, with their `Mail.state`. Settled mails are deleted after `RETENTION`."""
    return Mail.objects.filter(about=about).order_by("created_at", "recipient")


def token_context(page: str, token: str) -> Context:
    """Returns the context of a mail with a token: a link to the frontend if its URL is set, else the base URL of the API."""
    frontend = settings.APP_URL or settings.PUBLIC_URL
    link = f"{frontend}/{page}?{urlencode({'token': token})}" if frontend else ""
    return {"token": token, "link": link, "api": f"http://127.0.0.1:{settings.PORT}/api/v1"}


def send_due(*, now: datetime, limit: int = 50) -> int:
    """Sends up to `limit` due mails. Returns the number of mails that were sent.

    Raises: LeaseLost.
    """
    due = Mail.objects.filter(sent_at=None, failed_at=None, due_at__lte=now).order_by("due_at")
    sent, server_error = 0, None
    for mail in claim(due, now=now, limit=limit):
        try:
            if server_error:
                _postpone(mail, server_error, now)
            else:
                sent += _send(mail, now)
        except LeaseLost:
            continue
        except Exception as error:  # one mail that cannot be sent must not block the others
            _postpone(mail, error, now)
            if isinstance(error, OSError) and not isinstance(error, SMTPRecipientsRefused | SMTPDataError):
                # The server is unavailable. Postpone the other mails without a timeout for each, which would delay later ticks.
                server_error = error
    return sent


def delete_settled(*, now: datetime) -> int:
    """Deletes old mails that were sent or given up. Returns the number of deleted mails."""
    settled = Mail.objects.filter(created_at__lt=now - RETENTION).exclude(sent_at=None, failed_at=None)
    return settled.delete()[0]


def _send(mail: Mail, now: datetime) -> bool:
    mail.heartbeat(timezone.now())  # earlier mails of this tick can have taken long
    context = _context_builders[mail.kind](mail, now)
    if context is None:
        _drop(mail, now)
        return False
    message = _message(mail, context)
    message.send()
    # If the process is killed before the update, the mail is sent again with the same Message-ID.
    if mail.fenced().update(sent_at=now, refused=[*message.refused], problem="", lease_owner="", lease_at=None) != 1:
        raise LeaseLost
    return True


def _drop(mail: Mail, now: datetime) -> None:
    """Marks an obsolete mail as dropped, so that the object it is about shows this. Deletes a mail that is about no object.

    An example of the latter is a password reset for an address that no user has.
    """
    if not mail.about:
        mail.fenced().delete()
        return
    # A new id releases the one that `queue` derived, so that the same mail can be queued again if the need returns.
    mail.fenced().update(id=uuid4(), failed_at=now, is_dropped=True, problem="", lease_owner="", lease_at=None)


def _message(mail: Mail, context: Context) -> Message:
    subject, _, text = render_to_string(f"mail/{mail.kind}.txt", _sanitized(context, quote="> ")).partition("\n")
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    headers = {"Message-ID": f"<{mail.pk}@{domain}>", "Auto-Submitted": "auto-generated"}
    if contact := context.get("contact"):
        # The contact is the author, who receives replies, and the server is the sender (RFC 5322, 3.6.2). The envelope sender
        # stays the server's own address, which SPF checks and which receives bounces. DMARC checks the domain of the contact,
        # so that domain must authorise this server.
        headers |= {"From": str(Address(addr_spec=contact)), "Sender": settings.DEFAULT_FROM_EMAIL}
    message = Message(subject=subject, body=text.strip() + "\n", to=[mail.recipient], cc=mail.copies, headers=headers)
    message.attach_alternative(render_to_string(f"mail/{mail.kind}.html", _sanitized(context, quote="")), "text/html")
    return message


def _sanitized(context: Context, *, quote: str) -> Context:
    """Joins the lines of each value, so that a name cannot start a line. Puts `quote` before each line of a `QuotedText`."""
    return {
        name: "\n".join(quote + _in_one_line(line) for line in value.strip().splitlines())
        if isinstance(value, QuotedText)
        else _in_one_line(value)
        for name, value in context.items()
    }


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _postpone(mail: Mail, error: Exception, now: datetime) -> None:
    # Store the class of the error and the server's status code. The text of the error can repeat the message, with its token.
    problem = f"{type(error).__name__} {error.smtp_code}" if isinstance(error, SMTPResponseException) else type(error).__name__
    delay = min(FIRST_DELAY * 2 ** min(mail.attempts - 1, 10), MAX_DELAY)
    mail.fenced().update(
        problem=problem,
        due_at=now + delay,
        failed_at=now if mail.attempts >= MAX_ATTEMPTS else None,
        lease_owner="",
        lease_at=None,
    )
    log.warning(
        "could not send a mail",
        extra={"mail": str(mail.pk), "attempts": mail.attempts, "problem": problem},
        exc_info=not isinstance(error, OSError),
    )
