import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rest_framework.exceptions import APIException

from tenants.models import User


class OperatorCommand(BaseCommand):
    """A command that calls a service. It prints an error of the service as one line on stderr, and exits with status 1."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except APIException as error:
            raise CommandError(_sentences(error.detail)) from error


def find_user(username: str) -> User:
    user = User.objects.filter(username=username).first()
    if user is None:
        raise CommandError(f"There is no user {username}.")
    return user


def ask_password() -> str:
    password = getpass.getpass()
    if getpass.getpass("Password (again): ") != password:
        raise CommandError("The passwords differ.")
    return password


def _sentences(detail: Any) -> str:
    if isinstance(detail, dict):
        return " ".join(f"{field}: {_sentences(problems)}" for field, problems in detail.items())
    return " ".join(map(str, detail)) if isinstance(detail, list) else str(detail)
