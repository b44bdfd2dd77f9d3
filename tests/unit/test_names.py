"""Which filenames are accepted, and which count as the same (F-40)."""

import unicodedata
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from files.filenames import check_filename, unique_key


REFUSED = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "a folder up": "../x",
    "a Windows folder up": "..\\x",
    "absolute": "/abs",
    "a drive": "C:\\x",
    "slash alone": "/",
    "slash at the end": "x/",
    "backslash at the end": "x\\",
    "space": " ",
    "space before": " x",
    "space behind": "x ",
    "no-break space behind": "x\u00a0",
    "ideographic space before": "\u3000x",
    "line separator behind": "x\u2028",
    "NUL": "a\x00b",
    "NUL at the end": "a.txt\x00",
    "CR": "a\rb",
    "LF": "a\nb",
    "LF at the end": "a\n",
    "header injection": 'a"\r\nSet-Cookie: x=1',
    "TAB": "a\tb",
    "ANSI": "\x1b[31m",
    "DEL": "a\x7fb",
    "NEL": "a\x85b",
    "CSI": "a\x9bb",
    "right-to-left override": "cod\u202egpj.exe",
    "right-to-left embedding": "a\u202bb",
    "pop directional formatting": "a\u202cb",
    "left-to-right mark": "a\u200eb",
    "right-to-left mark": "a\u200fb",
    "Arabic letter mark": "a\u061cb",
    "right-to-left isolate": "a\u2067b",
    "pop directional isolate": "a\u2069b",
    "high surrogate": "a\ud83d",
    "low surrogate": "\udc80",
    "first surrogate": "a\ud800b",
    "last surrogate": "a\udfffb",
    "a surrogate pair that is none": "\ud83d\ude00",
    "256 bytes": "x" * 256,
    "256 bytes in 128 characters": "ß" * 128,
    "257 bytes in 65 characters": "x" + "😀" * 64,
    "1000 emoji": "😀" * 1000,
}
ACCEPTED = {
    "plain": "report.csv",
    "dash before": "-rf",
    "options": "--checkpoint-action=exec=sh",
    "dot before": ".bashrc",
    "three dots": "...",
    "dots and more": "..x",
    "dot behind": "x.",
    "space inside": "a  b",
    "CON": "CON",
    "NUL the device": "NUL",
    "aux.txt": "aux.txt",
    "zero width space": "a\u200bb",
    "zero width no-break space": "\ufeffa",
    "composed": "é",
    "decomposed": "e\u0301",
    "sharp s": "straße",
    "dotted capital I": "İ",
    "255 bytes": "x" * 255,
    "255 bytes of emoji and ascii": "😀" * 63 + "xyz",
    "shell": ";rm -rf ~",
    "dollar": "$(reboot)`reboot`",
    "html": "'\"><svg onload=alert(1)>".replace("/", ""),
    "formula": "=cmd|'C:calc'!A1",
    "percent": "%2e%2e%2f",
    "double percent": "%252e",
    "line separator inside": "a\u2028b",
    "filename* tricks": "a; filename*=UTF-8''evil.exe",
    "closing quote": 'a"; filename="b',
    "a second parameter": "a.txt\"; filename*=utf-8''%2e%2e%2fb",
    "division slash": "a\u2215b",
    "fullwidth solidus": "a\uff0fb",
    "fraction slash": "a\u2044b",
    "fullwidth reverse solidus": "a\uff3cb",
    "Hebrew": "דוח.pdf",
    "only a mark": "\u0301",
    "colon": "a:b",
    "stars": "*?.txt",
    "a device with a stream": "x::$DATA",
    "noncharacter": "a\uffff",
    "tilde": "~",
}


def test_check_filename_refused(subtests: pytest.Subtests) -> None:
    for case, name in REFUSED.items():
        with subtests.test(case):
            with pytest.raises(ValueError, match=r"^A filename must not .+\.$") as caught:
                check_filename(name)

            assert type(caught.value) is ValueError
            assert len(name) < 3 or name not in str(caught.value)
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None  # an error of the codec would carry the name


def test_check_filename_accepted(subtests: pytest.Subtests) -> None:
    for case, name in ACCEPTED.items():
        with subtests.test(case):
            assert check_filename(name) == name


@given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=300))
@example("\ud800")
def test_check_filename_accepts_only_what_every_store_keeps(name: str) -> None:
    try:
        accepted = check_filename(name)
    except ValueError:
        return
    encoded = accepted.encode()
    assert encoded.decode() == name
    assert 1 <= len(encoded) <= 255
    assert not {unicodedata.category(character) for character in accepted} & {"Cc", "Cs"}
    assert not set("/\\") & set(accepted)
    directed = {unicodedata.bidirectional(character) for character in accepted}
    assert not directed & {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert accepted == accepted.strip()
    assert accepted not in {".", ".."}


def test_check_filename_refuses_each_forbidden_character_and_no_other() -> None:
    bidi = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # Bidi_Control

    allowed = []
    for character in map(chr, range(0x110000)):
        if unicodedata.category(character) in {"Cc", "Cs"} or character in "/\\" or character in bidi:
            with suppress(ValueError):
                assert not check_filename(f"a{character}b"), ascii(character)
        else:
            allowed.append(character)
    for start in range(0, len(allowed), 60):  # in names of 242 bytes at most
        name = f"a{''.join(allowed[start : start + 60])}b"
        assert check_filename(name) == name


def test_unique_key_of_twins() -> None:
    for one, other in [
        ("Report.CSV", "report.csv"),
        ("é", "e\u0301"),
        ("É", "e\u0301"),
        ("straße", "STRASSE"),
        ("ẞ", "ss"),
        ("İ", "i\u0307"),
        ("\u212a", "k"),  # Kelvin sign
        ("\ufb01", "fi"),  # ligature
        ("Σ", "ς"),
        ("Å", "\u212b"),  # Angstrom sign
        ("\u1fb3", "\u0391\u0399"),
    ]:
        assert unique_key(one) == unique_key(other), (one, other)


def test_unique_key_of_different_names() -> None:
    for one, other in [
        ("a", "b"),
        ("e", "é"),
        ("I", "\u0131"),
        ("a", "a\u200b"),
        ("2", "²"),
        ("a b", "a  b"),
        ("x", "x."),
        ("-", "\u2010"),
    ]:
        assert unique_key(one) != unique_key(other), (one, other)


ODD = "eE\u0301\u0345\u0308\u017f\u1e9eßİiI\u0391\u03b1\u1fb3\u1fc3\u03a3\u03c2\u03c3\ufb01\u0390"


@given(st.text(max_size=40) | st.text(st.sampled_from(ODD), max_size=12))
def test_unique_key_is_stable(name: str) -> None:
    key = unique_key(name)

    assert unique_key(key) == key
    assert unique_key(unicodedata.normalize("NFC", name)) == key
    assert unique_key(unicodedata.normalize("NFD", name)) == key


def test_unique_key_has_no_more_characters_than_the_name_has_bytes() -> None:
    """So that 255 characters hold the key of every accepted name. No character is worse alone than beside others."""
    for start in range(0, 0x110000, 256):
        characters = [chr(number) for number in range(max(start, 1), start + 256) if not 0xD800 <= number <= 0xDFFF]
        keys = unique_key("\0".join(characters)).split("\0") if characters else []  # NUL combines with nothing
        for character, key in zip(characters, keys, strict=True):
            assert len(key) <= len(character.encode()), ascii(character)
