"""The reader that docs/format.md prints decrypts every stored test vector and rejects every damaged one."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "unit" / "vectors"


def stored(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


OBJECTS = [vector for name in ("strongroom.json", "tink.json") for vector in stored(name)["vectors"]]
DAMAGED = stored("damaged.json")


@pytest.fixture(scope="module")
def read() -> Callable[..., bytes]:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "format.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/format.md", "exec"), names)  # noqa: S102  the code under test
    reader: Callable[..., bytes] = names["read"]
    return reader


def row_of(vector: dict[str, Any]) -> dict[str, Any]:
    """Returns the vector's row in the output format of `decrypt_object export`."""
    _, key_id, purpose, owner, kek_id = vector["context_fields"]
    return {
        "format": "strongroom/row/v1",
        **vector["associated_data_fields"],
        "length": vector["length"],
        "sha256": vector["plaintext_sha256"],
        "header": vector["header"],
        "key_salt": vector["key_salt"],
        "key_commitment": vector["key_commitment"],
        "key": {"id": key_id, "purpose": purpose, "owner": owner, "kek_id": kek_id, "wrapped": vector["wrapped_key"]},
    }


def test_read_stored_object(read: Callable[..., bytes], subtests: pytest.Subtests) -> None:
    for vector in OBJECTS:
        with subtests.test(vector["name"]):
            plaintext = read(row_of(vector), bytes.fromhex(vector["kek"]), base64.b64decode(vector["object"]))
            assert hashlib.sha256(plaintext).hexdigest() == vector["plaintext_sha256"]


def test_read_damaged_object(read: Callable[..., bytes], subtests: pytest.Subtests) -> None:
    (base,) = [vector for vector in OBJECTS if vector["name"] == DAMAGED["base"]]
    for damaged in DAMAGED["vectors"]:
        # The message of InvalidTag is empty.
        with subtests.test(damaged["name"]), pytest.raises(Exception, match=r"another object|^$"):
            read(row_of(base), bytes.fromhex(base["kek"]), base64.b64decode(damaged["object"]))
