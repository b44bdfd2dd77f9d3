"""Reads settings from the environment. A missing or bad value stops the process with a message that says how to correct it."""

import os
import stat
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import environ


# Commands that run without an installation, and so without secrets.
OFFLINE_COMMANDS: Final = {"verify_package"}


class BadSetting(SystemExit):
    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"strongroom: {name} {problem}")


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, default).strip()


def flag(name: str, *, default: bool) -> bool:
    value = text(name).lower()
    if value in {"", "1", "true", "yes", "on"}:
        return default if value == "" else True
    if value in {"0", "false", "no", "off"}:
        return False
    raise BadSetting(name, f"is {value!r}; use 1 or 0")


def integer(name: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
    value = text(name, str(default))
    try:
        number = int(value)
    except ValueError:
        raise BadSetting(name, f"is {value!r}; use a whole number") from None
    if number < minimum:
        raise BadSetting(name, f"is {number}; use at least {minimum}")
    if maximum is not None and number > maximum:
        raise BadSetting(name, f"is {number}; use at most {maximum}")
    return number


def schedule(name: str, default: str) -> str:
    """Reads the five fields of a crontab line."""
    from celery.schedules import ParseException, crontab  # here, because config.install imports this module and must be fast

    value = text(name, default)
    try:
        crontab.from_string(value)
    except (ValueError, ParseException):
        raise BadSetting(name, f"is {value!r}; use minute, hour, day, month and weekday, such as 0 4 * * *") from None
    return value


def words(name: str, default: str = "") -> list[str]:
    """Reads a comma-separated list."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def mail_server(name: str) -> dict[str, Any]:
    """Returns Django's EMAIL_ settings for smtp://user:password@host:port. Error messages do not show the password.

    Accepts SMTP only. Other schemes select other backends of Django; the one for the console, for example, would log tokens.
    """
    if not (value := text(name)):
        return {}
    ports = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}
    try:
        url = urlsplit(value)
        config = environ.Env.email_url_config(value) if url.scheme in ports and url.hostname else {}
    except ValueError:  # an invalid port
        config = {}
    if not config:
        raise BadSetting(name, f"is not the URL of a mail server; use {', '.join(f'{scheme}://host' for scheme in ports)}")
    known = {setting: value for setting, value in config.items() if setting.startswith("EMAIL_") and setting != "EMAIL_FILE_PATH"}
    return known | {"EMAIL_BACKEND": "config.mail.SMTPBackend", "EMAIL_PORT": url.port or ports[url.scheme]}


def secret(name: str, *, file: Path | None = None) -> str:
    """Reads a secret from NAME, from the file that NAME_FILE names, or from `file`. Secrets have no defaults.

    Returns "" for a missing secret if the command is one of OFFLINE_COMMANDS.
    """
    if value := text(name):
        return value
    path = Path(text(f"{name}_FILE")) if text(f"{name}_FILE") else file
    if path is None or not path.is_file():
        if OFFLINE_COMMANDS.intersection(sys.argv[1:2]):
            return ""
        hint = f" (looked in {path})" if path else ""
        raise BadSetting(name, f"is not set{hint}. Set {name} or {name}_FILE, or let bin/run create it.")
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        raise BadSetting(f"{name}_FILE", f"is accessible to other users. Run: chmod 600 {path}")
    if not (value := path.read_text().strip()):
        raise BadSetting(f"{name}_FILE", f"names an empty file: {path}")
    return value
