"""EMAIL_URL, as Django's settings; what is wrong with it stops the process without saying its password."""

from typing import Any

import pytest

from config import env


SMTP = {"EMAIL_BACKEND": "config.mail.SMTPBackend", "EMAIL_HOST": "mail.example.org"}
PERSON = {"EMAIL_HOST_USER": "files@example.org", "EMAIL_HOST_PASSWORD": "p@ss:word"}
NOBODY = {"EMAIL_HOST_USER": None, "EMAIL_HOST_PASSWORD": None}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", {}),
        ("smtp://mail.example.org", SMTP | NOBODY | {"EMAIL_PORT": 25}),
        (
            "smtp+tls://files%40example.org:p%40ss%3Aword@mail.example.org",
            SMTP | PERSON | {"EMAIL_PORT": 587, "EMAIL_USE_TLS": True},
        ),
        (
            "smtp+ssl://files%40example.org:p%40ss%3Aword@mail.example.org:4650",
            SMTP | PERSON | {"EMAIL_PORT": 4650, "EMAIL_USE_SSL": True},
        ),
    ],
)
def test_mail_server(monkeypatch: pytest.MonkeyPatch, url: str, expected: dict[str, Any]) -> None:
    monkeypatch.setenv("EMAIL_URL", url)
    assert env.mail_server("EMAIL_URL") == expected


@pytest.mark.parametrize(
    "url",
    [
        "consolemail://",
        "filemail:///tmp",
        "mail.example.org",
        "smtp://",
        "smtp://u:secret@host:no",
        "smtps://u:secret@host",
        "://",
    ],
)
def test_mail_server_that_is_none_stops_the_process(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """INV-15: the console's backend would log tokens."""
    monkeypatch.setenv("EMAIL_URL", url)
    with pytest.raises(env.BadSetting, match="EMAIL_URL is not the URL of a mail server; use smtp://host") as error:
        env.mail_server("EMAIL_URL")
    assert "secret" not in str(error.value)
