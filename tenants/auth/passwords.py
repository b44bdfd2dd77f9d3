"""A person's own password: changed by who knows it, reset by who reads their mailbox."""

import re
from datetime import datetime, timedelta
from typing import Final

from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

from tenants import limits, request_context, services
from tenants.auth import tokens
from tenants.errors import BadToken, Invalid
from tenants.models import Mail, User
from tenants.work import outbox
from tenants.work.deadlocks import retry_on_deadlock


RESET: Final = "password_reset"  # the kind of mail
PAUSE: Final = timedelta(minutes=5)
MOST_WAITING: Final = 1000  # anybody may ask, for any address: they fill neither the table nor the way of other mail

_secrets = PasswordResetTokenGenerator()  # dies with the password, the last login and the e-mail address that it was made for


def change(*, request: HttpRequest, user: User, current_password: str, new_password: str, now: datetime) -> tokens.Pair:
    """Ends every token of the person but the pair that this returns. A wrong password counts as a failed sign-in."""
    recognised = services.verify_credentials(request=request, username=user.username, password=current_password)
    if recognised is None:
        raise Invalid("current_password", "This is not your password.", code="invalid_credentials")
    services.set_password(user=recognised, password=new_password, by=recognised, now=now, field="new_password")
    return services.open_session(recognised, now)


@retry_on_deadlock
def request_reset(*, email: str, now: datetime) -> None:
    """Takes the same for everybody: whether the address is a person's is only asked when the mail is due."""
    limits.RESETS.take(request_context.network(), now=now)
    with transaction.atomic():
        if Mail.objects.filter(kind=RESET, sent_at=None, failed_at=None).count() < MOST_WAITING:
            outbox.queue(RESET, to=email.lower(), now=now, once_in=PAUSE)


@retry_on_deadlock
def confirm_reset(*, token: str, new_password: str, now: datetime) -> None:
    limits.MAILED_TOKENS.take(request_context.network(), now=now)
    number, _, secret = token.partition("-")
    if not re.fullmatch("[0-9]{1,18}", number):
        raise BadToken
    with transaction.atomic():
        # The other contender has the same token: once the first has set a password, the second's secret fits no more.
        user = _resettable().select_for_update().filter(pk=number).first()
        if not _secrets.check_token(user, secret) or user is None:
            raise BadToken
        services.set_password(user=user, password=new_password, by=user, now=now, field="new_password")


@outbox.letter(RESET)
def _letter(mail: Mail, now: datetime) -> outbox.Letter | None:
    user = _resettable().filter(email=mail.recipient).first()
    if user is None:
        return None
    return {"username": user.username, **outbox.opening("reset-password", f"{user.pk}-{_secrets.make_token(user)}")}


def _resettable() -> QuerySet[User]:
    return User.objects.filter(is_active=True, service_of=None)
