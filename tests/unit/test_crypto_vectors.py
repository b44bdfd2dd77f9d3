"""Objects written long ago, by us and by stock Tink, open for ever; `vectors/make.py` says how they came about."""

import base64
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.unit import stock
from tests.unit.objects import opened
from vault import crypto, keys
from vault.models import Key


def stored(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / name).read_text())["vectors"]
    return vectors


OBJECTS = [vector for name in ("strongroom.json", "tink.json") for vector in stored(name)]
BASE = next(vector for vector in OBJECTS if vector["name"] == "tink-64-104")


def content(vector: dict[str, Any]) -> bytes:
    """From the keyring's key and the row to the content, as `decrypt_object` and every download go."""
    collection_key = crypto.unwrap_key(
        bytes.fromhex(vector["kek"]),
        bytes.fromhex(vector["wrapped_key"]),
        context=crypto.encode(*vector["context_fields"]),
    )
    aad = crypto.associated_data(**vector["associated_data_fields"])
    key = crypto.recover_file_key(
        collection_key,
        key_salt=bytes.fromhex(vector["key_salt"]),
        aad=aad,
        commitment=bytes.fromhex(vector["key_commitment"]),
    )
    return opened(
        base64.b64decode(vector["object"]),
        length=vector["length"],
        segment_size=vector["segment_size"],
        header=bytes.fromhex(vector["header"]),
        material=key.material,
        aad=aad,
    )


def test_open_stored_object(subtests: pytest.Subtests) -> None:
    for vector in OBJECTS:
        with subtests.test(vector["name"]):
            assert hashlib.sha256(content(vector)).hexdigest() == vector["plaintext_sha256"]


def test_stock_tink_opens_stored_object(subtests: pytest.Subtests) -> None:
    for vector in OBJECTS:
        with subtests.test(vector["name"]):
            plaintext = stock.decrypt(
                base64.b64decode(vector["object"]),
                key_material=bytes.fromhex(vector["key_material"]),
                aad=bytes.fromhex(vector["associated_data"]),
                segment_size=vector["segment_size"],
            )
            assert hashlib.sha256(plaintext).hexdigest() == vector["plaintext_sha256"]


def test_derive_stored_keys(subtests: pytest.Subtests) -> None:
    """Each step by itself, so that a step that changed is named."""
    for vector in OBJECTS:
        with subtests.test(vector["name"]):
            context = bytes.fromhex(vector["context"])
            collection_key = bytes.fromhex(vector["collection_key"])
            aad = bytes.fromhex(vector["associated_data"])

            assert crypto.encode(*vector["context_fields"]) == context
            assert crypto.associated_data(**vector["associated_data_fields"]) == aad
            unwrapped = crypto.unwrap_key(bytes.fromhex(vector["kek"]), bytes.fromhex(vector["wrapped_key"]), context=context)
            assert unwrapped == collection_key
            key = crypto.derive_file_key(collection_key, key_salt=bytes.fromhex(vector["key_salt"]), aad=aad)
            assert (key.material.hex(), key.commitment.hex()) == (vector["key_material"], vector["key_commitment"])


def test_wrapping_of_a_row_is_bound_to_the_stored_context() -> None:
    """The vectors would open for ever while no wrapped key in a database did, if rows came to name their context otherwise."""
    _, key_id, purpose, owner, kek_id = BASE["context_fields"]
    row = Key(id=uuid.UUID(key_id), purpose=purpose, owner=owner, kek_id=kek_id)

    assert keys.wrapping_context(row, kek_id=kek_id).hex() == BASE["context"]
    assert purpose == Key.Purpose.COLLECTION


def test_encrypt_stored_object_again(subtests: pytest.Subtests) -> None:
    """Given the same salt and prefix, byte for byte what stood there, and what Tink wrote: only the random bytes differ."""
    for vector in OBJECTS:
        header, ciphertext = bytes.fromhex(vector["header"]), base64.b64decode(vector["object"])
        plaintext, drawn = content(vector), [header[33:], header[1:33]]
        with subtests.test(vector["name"]), pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.urandom", lambda size, drawn=drawn: drawn.pop()[:size])

            encryptor = crypto.AesGcmEncryptor(
                bytes.fromhex(vector["key_material"]),
                aad=bytes.fromhex(vector["associated_data"]),
                segment_size=vector["segment_size"],
            )

            assert encryptor.header + encryptor.update(plaintext) + encryptor.finish() == ciphertext
            assert not drawn


def test_open_stored_object_with_another_key(subtests: pytest.Subtests) -> None:
    for change in ("kek", "wrapped_key", "key_salt", "key_commitment"):
        changed = bytearray.fromhex(BASE[change])
        changed[-1] ^= 1
        with subtests.test(change), pytest.raises(crypto.WrongKey):
            content(BASE | {change: changed.hex()})


def test_open_stored_object_at_another_place(subtests: pytest.Subtests) -> None:
    for field, value in BASE["associated_data_fields"].items():
        other = value + 1 if isinstance(value, int) else value[:-1] + "f"
        with subtests.test(field), pytest.raises(crypto.WrongKey):
            content(BASE | {"associated_data_fields": BASE["associated_data_fields"] | {field: other}})


def test_open_damaged_object(subtests: pytest.Subtests) -> None:
    """Under the row's header, and under a row that was given the damaged object's own."""
    for vector in stored("damaged.json"):
        for header in (BASE["header"], base64.b64decode(vector["object"])[:40].hex()):
            with subtests.test(vector["name"], header=header), pytest.raises(crypto.CorruptObject):
                content(BASE | {"object": vector["object"], "header": header})


def test_stock_tink_forgives_some_damage() -> None:
    """Why it must never be the reader (C-3). Should a new Tink refuse all of it, so much the better: this test says so."""
    forgiven = [vector["name"] for vector in stored("damaged.json") if vector["stock_tink_forgives"]]

    assert forgiven == ["last segment repeated", "bytes behind the end", "empty last segment"]
    for vector in stored("damaged.json"):
        if vector["stock_tink_forgives"]:
            plaintext = stock.decrypt(
                base64.b64decode(vector["object"]),
                key_material=bytes.fromhex(BASE["key_material"]),
                aad=bytes.fromhex(BASE["associated_data"]),
                segment_size=BASE["segment_size"],
            )
            assert hashlib.sha256(plaintext).hexdigest() == BASE["plaintext_sha256"]
