"""Mails: a row in the transaction of what it tells of, sent by the tick. One that fails changes nothing of that (F-34).

A row holds no secret and no text. Both are made when it is sent, by the function that is registered for its kind.
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

FIRST_PAUSE: Final = timedelta(seconds=30)
LONGEST_PAUSE: Final = timedelta(hours=1)
MOST_ATTEMPTS: Final = 80  # three days: the pauses double up to the longest
KEPT: Final = timedelta(days=30)
EVER: Final = timedelta.max  # as `once_in`: one such mail and no other, for as long as it is kept

Letter = dict[str, str]  # what fills the templates; `contact`, if there is one, is also who the mail is from
Writer = Callable[[Mail, datetime], Letter | None]
_writers: dict[str, Writer] = {}


class Lines(str):
    """A value of a letter that keeps its lines: somebody's own words, quoted in the text so that they pass for no others.

    The template has it on a line of its own; that of the HTML as `<blockquote>{{ it|linebreaksbr }}</blockquote>`.
    """


class Message(EmailMultiAlternatives):
    refused: Sequence[str] = ()  # those in Cc whom the server refused: whoever sends it says so (`config.mail.Server`)


def letter(kind: str) -> Callable[[Writer], Writer]:
    """Registers what fills the templates `mail/<kind>.txt` and `.html`. None: there is nothing left to tell, see `_drop`."""

    def register(writer: Writer) -> Writer:
        _writers[kind] = writer
        return writer

    return register


def queue(
    kind: str,
    *,
    to: str,
    now: datetime,
    due_at: datetime | None = None,
    once_in: timedelta | None = None,
    about: str = "",
    copies: Iterable[str] = (),
    **facts: str,
) -> None:
    """Writes the mail in the caller's transaction. With `once_in`, at most one such mail in each stretch of that length.

    `about` is the uuid of what it tells of, for `mails_about`; `copies` are the addresses in Cc of the same message.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("A mail is written in the transaction of what it tells of.")
    pk = uuid4()
    if once_in is not None:
        # The other contender asks for the same at the same moment: both come to one id.
        such = f"{kind} {to} {sorted(facts.items())} {now.timestamp() // once_in.total_seconds()}{about}"
        pk = uuid5(NAMESPACE_URL, such)
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
    """What became of the mails that tell of it: see `Mail.state`. They are forgotten after a month."""
    return Mail.objects.filter(about=about).order_by("created_at", "recipient")


def opening(page: str, token: str) -> Letter:
    """How the reader of a letter uses a token: a page of the frontend or, where nobody said where that is, the API by hand."""
    frontend = settings.APP_URL or settings.PUBLIC_URL
    link = f"{frontend}/{page}?{urlencode({'token': token})}" if frontend else ""
    return {"token": token, "link": link, "api": f"http://127.0.0.1:{settings.PORT}/api/v1"}


def send_due(*, now: datetime, limit: int = 50) -> int:
    """Sends what is due; returns how many mails went out."""
    due = Mail.objects.filter(sent_at=None, failed_at=None, due_at__lte=now).order_by("due_at")
    sent, is_down = 0, None
    for mail in claim(due, now=now, limit=limit):
        try:
            if is_down:
                _postpone(mail, is_down, now)
            else:
                sent += _send(mail, now)
        except LeaseLost:
            continue
        except Exception as error:  # one mail that cannot be sent must not hold up the rest
            _postpone(mail, error, now)
            if isinstance(error, OSError) and not isinstance(error, SMTPRecipientsRefused | SMTPDataError):
                is_down = error  # the server's fault, not the mail's: the rest would wait for it, and other ticks for this one
    return sent


def delete_settled(*, now: datetime) -> int:
    """Deletes mails whose fate was settled long ago. Returns how many."""
    settled = Mail.objects.filter(created_at__lt=now - KEPT).exclude(sent_at=None, failed_at=None)
    return settled.delete()[0]


def _send(mail: Mail, now: datetime) -> bool:
    mail.heartbeat(timezone.now())  # those before it may have taken long
    filled = _writers[mail.kind](mail, now)
    if filled is None:
        _drop(mail, now)
        return False
    message = _message(mail, filled)
    message.send()
    # A kill before this line sends it once more, with the same Message-ID.
    if mail.fenced().update(sent_at=now, refused=[*message.refused], problem="", lease_owner="", lease_at=None) != 1:
        raise LeaseLost
    return True


def _drop(mail: Mail, now: datetime) -> None:
    """What it is about shows that it was not sent. Of one about nothing, such as a reset for a stranger, nothing is kept."""
    if not mail.about:
        mail.fenced().delete()
        return
    # It gives its id back, with which `queue` knows such a mail: should there be a reason again, it is written anew.
    mail.fenced().update(id=uuid4(), failed_at=now, is_dropped=True, problem="", lease_owner="", lease_at=None)


def _message(mail: Mail, filled: Letter) -> Message:
    subject, _, text = render_to_string(f"mail/{mail.kind}.txt", _tamed(filled, quote="> ")).partition("\n")
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
    headers = {"Message-ID": f"<{mail.pk}@{domain}>", "Auto-Submitted": "auto-generated"}
    if contact := filled.get("contact"):
        # The contact is the author, whom an answer reaches, and we are the sender (RFC 5322, 3.6.2). The envelope stays ours:
        # SPF is asked of it, and what comes back comes to us. DMARC is asked of the contact's domain, which has to know of us.
        headers |= {"From": str(Address(addr_spec=contact)), "Sender": settings.DEFAULT_FROM_EMAIL}
    message = Message(subject=subject, body=text.strip() + "\n", to=[mail.recipient], cc=mail.copies, headers=headers)
    message.attach_alternative(render_to_string(f"mail/{mail.kind}.html", _tamed(filled, quote="")), "text/html")
    return message


def _tamed(filled: Letter, *, quote: str) -> Letter:
    """A name must not begin a line of its own; words that may have lines begin each with `quote`."""
    return {
        name: "\n".join(quote + _in_one_line(line) for line in value.strip().splitlines())
        if isinstance(value, Lines)
        else _in_one_line(value)
        for name, value in filled.items()
    }


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _postpone(mail: Mail, error: Exception, now: datetime) -> None:
    # Of an error only its kind and the server's code: its text may repeat what was sent.
    problem = f"{type(error).__name__} {error.smtp_code}" if isinstance(error, SMTPResponseException) else type(error).__name__
    pause = min(FIRST_PAUSE * 2 ** min(mail.attempts - 1, 10), LONGEST_PAUSE)
    mail.fenced().update(
        problem=problem,
        due_at=now + pause,
        failed_at=now if mail.attempts >= MOST_ATTEMPTS else None,
        lease_owner="",
        lease_at=None,
    )
    log.warning(
        "a mail was not sent",
        extra={"mail": str(mail.pk), "attempts": mail.attempts, "problem": problem},
        exc_info=not isinstance(error, OSError),
    )
