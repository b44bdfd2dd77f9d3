"""Reads settings from the environment; a missing or bad value stops the process and says how to mend it."""

import os
import stat
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import environ


# Commands for people who have a package, a public key, and no installation.
OFFLINE: Final = {"verify_package"}


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


def integer(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    value = text(name, str(default))
    try:
        number = int(value)
    except ValueError:
        raise BadSetting(name, f"is {value!r}; use a whole number") from None
    if number < least:
        raise BadSetting(name, f"is {number}; use at least {least}")
    if most is not None and number > most:
        raise BadSetting(name, f"is {number}; use at most {most}")
    return number


def schedule(name: str, default: str) -> str:
    """A crontab's five fields."""
    from celery.schedules import ParseException, crontab  # not above: bin/run asks this module for BadSetting alone

    value = text(name, default)
    try:
        crontab.from_string(value)
    except (ValueError, ParseException):
        raise BadSetting(name, f"is {value!r}; use minute, hour, day, month and weekday, such as 0 4 * * *") from None
    return value


def words(name: str, default: str = "") -> list[str]:
    """A list from a comma-separated value."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def mail_server(name: str) -> dict[str, Any]:
    """Django's EMAIL_ settings from smtp://user:password@host:port, or none. What is wrong with it is told without its password.

    Other ways than SMTP are refused: the console's, for one, would log tokens.
    """
    if not (value := text(name)):
        return {}
    ports = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}
    try:
        url = urlsplit(value)
        config = environ.Env.email_url_config(value) if url.scheme in ports and url.hostname else {}
    except ValueError:  # a port that is none
        config = {}
    if not config:
        raise BadSetting(name, f"is no address of a mail server; use {', '.join(f'{scheme}://host' for scheme in ports)}")
    known = {setting: value for setting, value in config.items() if setting.startswith("EMAIL_") and setting != "EMAIL_FILE_PATH"}
    return known | {"EMAIL_BACKEND": "config.mail.Server", "EMAIL_PORT": url.port or ports[url.scheme]}


def secret(name: str, *, file: Path | None = None) -> str:
    """The value of NAME, or the content of the file that NAME_FILE names, or of `file`; it never has a default.

    Empty for a command of OFFLINE, where there is none.
    """
    if value := text(name):
        return value
    path = Path(text(f"{name}_FILE")) if text(f"{name}_FILE") else file
    if path is None or not path.is_file():
        if OFFLINE.intersection(sys.argv[1:2]):
            return ""
        hint = f" (looked in {path})" if path else ""
        raise BadSetting(name, f"is not set{hint}: set {name} or {name}_FILE, or let bin/run create it")
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        raise BadSetting(f"{name}_FILE", f"{path} is open to other users: chmod 600 {path}")
    if not (value := path.read_text().strip()):
        raise BadSetting(f"{name}_FILE", f"{path} is empty")
    return value
