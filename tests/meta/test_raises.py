"""The analysis for `Raises:` lines finds the exceptions that a function raises, without those that it catches."""

import importlib.util
from types import ModuleType

import pytest

from tests.meta.raises import Code, corrected, differences, product


SAMPLE = '''
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

class Refused(Exception): ...
class Late(Refused): ...
class Lost(Exception): ...

def _check(x: int) -> None:
    if x:
        raise Late

def direct() -> None: raise Lost("text")
def deep() -> None: _check(1)
def caught() -> None:
    try:
        deep()
    except Refused:
        pass
def caught_elsewhere() -> None:
    try:
        deep()
    except Lost:
        pass
def again() -> None:
    try:
        deep()
    except Refused:
        raise
def named_again() -> None:
    try:
        deep()
    except Refused as error:
        raise error
def translated() -> None:
    try:
        deep()
    except Refused as error:
        raise Lost from error
def suppressed() -> None:
    with suppress(Refused):
        deep()
    direct()
def recursive(x: int) -> None:
    recursive(x - 1)
    _check(x)
def library() -> None: int("x")

@contextmanager
def translating() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise Lost from error
def managed() -> None:
    with translating():
        deep()

class Store(Protocol):
    def read(self) -> None: ...
class DiskStore:
    def read(self) -> None: raise Lost
class Row:
    store: Store
    def __init__(self) -> None: _check(0)
    @property
    def late(self) -> bool: raise Late
def constructed() -> None: Row()
def from_a_property(row: Row) -> None: print(row.late)
def from_a_protocol(row: "Row | None") -> None: row.store.read()
def from_a_variable() -> None:
    row = made()
    row.store.read()
def made() -> Row:
    """Raises: Late."""
    return Row()
def wrong() -> None:
    """Text.

    Raises: Lost, ValueError.
    """
    deep()
'''


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("sample") / "sample.py"
    path.write_text(SAMPLE)
    spec = importlib.util.spec_from_file_location("sample", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exceptions_are_followed_through_calls_up_to_their_handlers(sample: ModuleType) -> None:
    code = Code([sample])
    found = {name: " ".join(sorted(error.__name__ for error in code.raised(getattr(sample, name)))) for name in EXPECTED}
    assert found == EXPECTED


EXPECTED = {
    "direct": "Lost",
    "deep": "Late",
    "caught": "",
    "caught_elsewhere": "Late",
    "again": "Late",
    "named_again": "Late",
    "translated": "Lost",
    "suppressed": "Lost",
    "recursive": "Late",
    "library": "",
    "managed": "Lost",
    "constructed": "Late",
    "from_a_property": "Late",
    "from_a_protocol": "Lost",
    "from_a_variable": "Late Lost",
}


def test_docstrings_are_compared(sample: ModuleType) -> None:
    found = differences(Code([sample]))
    assert found["sample.direct"] == {"Lost"}
    assert found["sample.wrong"] == {"Late", "ValueError"}
    assert not {"sample.made", "sample.caught"} & found.keys()


@pytest.mark.parametrize(
    ("docstring", "names", "expected"),
    [
        ("", {"B", "A"}, "Raises: A, B."),
        ("Text.", {"A"}, "Text.\n\n    Raises: A.\n    "),
        ("Text.\n\n    Raises: B.\n    ", {"A"}, "Text.\n\n    Raises: A.\n    "),
        ("Text.\n\n    Raises: B.\n    ", set(), "Text."),
        ("Raises: B.", set(), ""),
    ],
)
def test_docstring_is_corrected(docstring: str, names: set[str], expected: str) -> None:
    assert corrected(docstring, names, "    ") == expected


def test_public_services_document_their_exceptions() -> None:
    """To correct them: `.venv/bin/python -m tests.meta.raises --write`."""
    assert differences(Code(product())) == {}
