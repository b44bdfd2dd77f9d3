"""The master keys: read, refused, and never shown."""

import base64
import contextlib
import hashlib
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from vault.crypto import WrongKey
from vault.keyring import keyring, parse


OLD, NEW = hashlib.sha256(b"old").digest(), hashlib.sha256(b"new").digest()


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_parse_several_keys() -> None:
    ring = parse(f"# master keys\n\n  k-2025\t{text(OLD)}   # retired in May\r\nk_2026.1 {text(NEW)}\n\n# end")

    assert ring.key("k-2025") == OLD
    assert ring.key("k_2026.1") == NEW
    assert ring.active == ("k_2026.1", NEW)


def test_parse_single_line() -> None:
    assert parse(f"only {text(OLD)}").active == ("only", OLD)


def test_key_that_the_keyring_lacks(subtests: pytest.Subtests) -> None:
    for name in ("other", "", "K", "k "):
        with subtests.test(name=name):
            with pytest.raises(WrongKey, match=f"'{name}'") as caught:
                parse(f"k {text(OLD)}").key(name)

            assert caught.value.__suppress_context__


def test_keyring_follows_the_setting(settings: Settings) -> None:
    settings.KEYRING = f"a {text(OLD)}"
    assert keyring().active == ("a", OLD)
    assert keyring() is keyring()

    settings.KEYRING = f"a {text(OLD)}\nb {text(NEW)}"
    assert keyring().active == ("b", NEW)


GOOD = f"good {text(OLD)}\n"
BAD = {
    "a name alone": (GOOD + "name", 2),
    "a key alone": (text(NEW), 1),
    "three fields": (f"# comment\n\nname {text(NEW)} more", 3),
    "a key and its name in the wrong order": (f"{text(NEW)} name", 1),
    "a key for a name": (f"{text(NEW)} {text(OLD)}", 1),
    "a long name": (f"{'n' * 64} {text(NEW)}", 1),
    "a name with other characters": (f"näme {text(NEW)}", 1),
    "a name that begins with a dash": (f"-name {text(NEW)}", 1),
    "31 bytes": (GOOD + f"name {text(NEW[:31])}", 2),
    "33 bytes": (GOOD + f"name {text(NEW + b'x')}", 2),
    "16 bytes": (f"name {text(NEW[:16])}", 1),
    "no bytes": ("name ====", 1),
    "hex": (f"name {NEW.hex()}", 1),
    "URL-safe base64": (f"name {base64.urlsafe_b64encode(bytes([255]) * 32).decode()}", 1),
    "no padding": (f"name {text(NEW)[:-1]}", 1),
    "other characters": (f"name {text(NEW)[:-2]}!=", 1),
    "a stray character": (f"name {text(NEW)[:9]}!{text(NEW)[9:]}", 1),
    "not ASCII": (f"name {text(NEW)[:-2]}ä=", 1),
    "a name twice": (GOOD + f"good {text(NEW)}", 2),
    "a key twice": (GOOD + f"again {text(OLD)}", 2),
}


def test_parse_refused(subtests: pytest.Subtests) -> None:
    """The error names the line and repeats nothing of it: what stands there may be a key (C-5)."""
    for name, (keys, line) in BAD.items():
        with subtests.test(name):
            with pytest.raises(ValueError, match=f"^KEYRING, line {line}: ") as caught:
                parse(keys)

            assert type(caught.value) is ValueError
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.__context__)
            for key in (OLD, NEW):
                for form in (text(key)[:12], key.hex()[:12], repr(key)[2:14]):
                    assert form not in shown


def test_parse_without_a_key(subtests: pytest.Subtests) -> None:
    for keys in ("", "\n \n", "# only a comment"):
        with subtests.test(keys=keys), pytest.raises(ValueError, match="no key"):
            parse(keys)


@given(st.text())
def test_parse_anything(keys: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse(keys).active


def test_keyring_shows_names_only() -> None:
    ring = parse(f"k1 {text(OLD)}\nk2 {text(NEW)}")

    assert repr(ring) == str(ring) == f"{ring}" == "<Keyring k1, k2>"
