"""Changing one's password with the current one, and resetting it with a token from a mail."""

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
MAIL_INTERVAL: Final = timedelta(minutes=5)  # a reset is mailed to an address at most once in this time
MAX_PENDING_MAILS: Final = 1000  # anyone can request resets, for any address; the limit keeps them from delaying other mails

# A token becomes invalid when the password, the last sign-in or the e-mail address of the user changes.
_token_generator = PasswordResetTokenGenerator()


def change(*, request: HttpRequest, user: User, current_password: str, new_password: str, now: datetime) -> tokens.Pair:
    """Changes the password, revokes all tokens of the user, and returns a new pair.

    A wrong current password counts as a failed sign-in.

    Raises: HashingFull, Invalid, TooManyAttempts, ValidationError.
    """
    verified = services.verify_credentials(request=request, username=user.username, password=current_password)
    if verified is None:
        raise Invalid("current_password", "This is not your current password.", code="invalid_credentials")
    services.set_password(user=verified, password=new_password, by=verified, now=now, field="new_password")
    return services.open_session(verified, now)


@retry_on_deadlock
def request_reset(*, email: str, now: datetime) -> None:
    """Queues a mail with a reset token. The tick looks up the user, so that the response time does not reveal who exists.

    Raises: TooManyRequests.
    """
    limits.RESETS.take(request_context.network(), now=now)
    with transaction.atomic():
        if Mail.objects.filter(kind=RESET, sent_at=None, failed_at=None).count() < MAX_PENDING_MAILS:
            outbox.queue(RESET, to=email.lower(), now=now, once_per=MAIL_INTERVAL)


@retry_on_deadlock
def confirm_reset(*, token: str, new_password: str, now: datetime) -> None:
    """Sets a new password with the token `<user id>-<secret>` from the mail. The token works once.

    Raises: BadToken, HashingFull, TooManyRequests, ValidationError.
    """
    limits.MAILED_TOKENS.take(request_context.network(), now=now)
    user_id, _, secret = token.partition("-")
    if not re.fullmatch("[0-9]{1,18}", user_id):
        raise BadToken
    user = _find_by_token(_users_with_password(), user_id, secret)
    services.prepare_password(user=user, password=new_password, field="new_password")
    with transaction.atomic():
        # The other contender uses the same token. The new password makes it invalid.
        _find_by_token(_users_with_password().select_for_update(), user_id, secret)
        services.save_password(user=user, by=user, now=now)


def _find_by_token(users: QuerySet[User], user_id: str, secret: str) -> User:
    user = users.filter(pk=user_id).first()
    if not _token_generator.check_token(user, secret) or user is None:
        raise BadToken
    return user


@outbox.context_builder(RESET)
def _build_mail_context(mail: Mail, now: datetime) -> outbox.Context | None:
    user = _users_with_password().filter(email=mail.recipient).first()
    if user is None:
        return None
    token = f"{user.pk}-{_token_generator.make_token(user)}"
    return {"username": user.username, **outbox.token_context("reset-password", token)}


def _users_with_password() -> QuerySet[User]:
    return User.objects.filter(is_active=True, service_of=None)
