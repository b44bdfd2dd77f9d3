"""Certificates and ledger entries of version 1, written by the code that wrote that version, must verify permanently."""

import base64
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings

from purge import ledger
from vault import signing


STORED: Final = json.loads((Path(__file__).parent / "vectors" / "destruction-v1.json").read_text())
ENTRY: Final = STORED["ledger_entry"].encode()


@pytest.fixture
def public() -> Ed25519PublicKey:
    key = load_pem_public_key(STORED["public_key"].encode())
    assert isinstance(key, Ed25519PublicKey)
    return key


def test_verify_stored_ledger_entry(public: Ed25519PublicKey) -> None:
    assert ledger.parse_entry(ENTRY, public=public) == ledger.LedgerEntry(
        number=1,
        deployment=STORED["deployment"],
        destruction=UUID(STORED["certificate"]["id"]),
        collection=UUID(STORED["collection"]),
        reason="expired",
        started_at=datetime(2026, 12, 1, 12, 19, 6, 33944, tzinfo=UTC),
    )


def test_refuse_stored_ledger_entry_with_a_changed_byte(public: Ed25519PublicKey) -> None:
    for place in range(len(ENTRY)):
        changed = bytearray(ENTRY)
        changed[place] ^= 1
        with pytest.raises(signing.BadEnvelope):
            ledger.parse_entry(bytes(changed), public=public)


@pytest.mark.parametrize("version", [2, 3])
def test_refuse_stored_ledger_entry_under_another_version(public: Ed25519PublicKey, version: int) -> None:
    """The version selects the context of the signature: another version or its field names are not accepted."""
    document = json.loads(ENTRY)
    body = document["destroyed"]
    body |= {"version": version, "reason": body.pop("why"), "started_at": body.pop("began_at")}
    with pytest.raises(signing.BadEnvelope):
        ledger.parse_entry(signing.canonical_json(document), public=public)


def is_accepted(answer: dict[str, Any], folder: Path) -> bool:
    """Runs the program in docs/retention.md, which users verify certificates with."""
    page = (Path(settings.BASE_DIR) / "docs" / "retention.md").read_text()
    program = re.findall(r"```python\n(.+?)```", page, re.DOTALL)[0]
    (folder / "certificate.json").write_text(json.dumps(answer))
    (folder / "key.pem").write_text(STORED["public_key"])
    command = [sys.executable, "-c", program, "certificate.json", "key.pem"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_verify_stored_certificate(tmp_path: Path) -> None:
    answer = STORED["certificate"]
    assert is_accepted(answer, tmp_path)
    assert signing.canonical_json(answer["certificate"]).decode() == answer["signed"]
    assert answer["certificate"]["why"] == "expired"


@pytest.mark.parametrize("change", ["content", "version", "signature"])
def test_refuse_stored_certificate_with_a_changed_byte(tmp_path: Path, change: str) -> None:
    answer = dict(STORED["certificate"])
    match change:
        case "content":
            answer["signed"] = answer["signed"].replace('"total_length":1500', '"total_length":1501')
        case "version":
            answer["signed"] = answer["signed"].replace('"version":1', '"version":2')
        case _:
            signature = bytearray(base64.b64decode(answer["signature"]))
            signature[0] ^= 1
            answer["signature"] = base64.b64encode(signature).decode()
    assert answer != STORED["certificate"]
    assert not is_accepted(answer, tmp_path)
