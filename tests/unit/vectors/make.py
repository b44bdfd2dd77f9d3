"""Writes the stored vectors, once: `python -m tests.unit.vectors.make`. It refuses to touch a file that is already there.

What is stored must open for ever. A new format gets new files; these stay, and so does the code that reads them.
The keys are hashes of words and open nothing else.
"""

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.unit import stock
from tests.unit.objects import sealed
from vault import crypto


FOLDER = Path(__file__).parent
LENGTHS = {
    57: [0, 1, 2, 41, 42, 43, 83, 84, 500],
    64: [0, 7, 8, 9, 55, 56, 57, 104, 105],
    4096: [0, 1, 4039, 4040, 4041, 8120, 8121],
    131_072: [0, 1000],
}


def word(text: str) -> bytes:
    return hashlib.sha256(f"strongroom vector: {text}".encode()).digest()


def content(length: int) -> bytes:
    return b"".join(word(f"content {block}") for block in range(length // 32 + 1))[:length]


def vector(maker: str, segment_size: int, length: int) -> dict[str, Any]:
    name = f"{maker}-{segment_size}-{length}"
    tenant, collection, key, file, object_id = (f"{i * 1111:04x}0000-0000-4000-8000-000000000000" for i in range(1, 6))
    kek, collection_key, key_salt = word(f"kek {maker}"), word(f"collection key {maker}"), word(f"salt {name}")
    context = ["strongroom/key", key, "collection", f"{tenant}/{collection}", "vectors-2026"]
    place = {"tenant": tenant, "collection": collection, "file": file, "object_id": object_id, "cipher": "AES-GCM"}
    aad = crypto.associated_data(**place, segment_size=segment_size)
    file_key = crypto.derive_file_key(collection_key, key_salt=key_salt, aad=aad)
    if maker == "tink":
        ciphertext = stock.encrypt(content(length), key_material=file_key.material, aad=aad, segment_size=segment_size)
    else:
        ciphertext = sealed(content(length), segment_size=segment_size, material=file_key.material, aad=aad)
    return {
        "name": name,
        "kek": kek.hex(),
        "context_fields": context,
        "context": crypto.encode(*context).hex(),
        "wrapped_key": crypto.wrap_key(kek, collection_key, context=crypto.encode(*context)).hex(),
        "collection_key": collection_key.hex(),
        "key_salt": key_salt.hex(),
        "associated_data_fields": {**place, "segment_size": segment_size},
        "associated_data": aad.hex(),
        "key_material": file_key.material.hex(),
        "key_commitment": file_key.commitment.hex(),
        "header": ciphertext[:40].hex(),
        "segment_size": segment_size,
        "length": length,
        "object": base64.b64encode(ciphertext).decode(),
        "plaintext_sha256": hashlib.sha256(content(length)).hexdigest(),
    }


def damages(base: dict[str, Any]) -> list[dict[str, Any]]:
    """One object of three segments, the last full; what was done to it, what we answer, and what stock Tink answers."""
    whole, aad = base64.b64decode(base["object"]), bytes.fromhex(base["associated_data"])
    first, second, third = whole[:64], whole[64:128], whole[128:]
    done: dict[str, bytes] = {
        "first byte of the header": b"\x18" + whole[1:],
        "salt": whole[:1] + bytes([whole[1] ^ 1]) + whole[2:],
        "nonce prefix": whole[:39] + bytes([whole[39] ^ 1]) + whole[40:],
        "first byte of the ciphertext": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "last byte of the last tag": whole[:-1] + bytes([whole[-1] ^ 1]),
        "segments swapped": first + third + second,
        "segment repeated": first + second + second + third,
        "last segment repeated": whole + third,
        "first segment missing": whole[:40] + second + third,
        "middle segment missing": first + third,
        "last segment missing": first + second,
        "last byte missing": whole[:-1],
        "only the header": whole[:40],
        "nothing": b"",
        "bytes behind the end": whole + bytes(24),
        "empty last segment": with_empty_last_segment(base, content(base["length"])),
    }
    vectors = []
    for name, ciphertext in done.items():
        try:
            plaintext = stock.decrypt(
                ciphertext, key_material=bytes.fromhex(base["key_material"]), aad=aad, segment_size=base["segment_size"]
            )
        except stock.Refused:
            plaintext = None
        vectors.append(
            {
                "name": name,
                "stock_tink_forgives": plaintext == content(base["length"]),
                "object": base64.b64encode(ciphertext).decode(),
            }
        )
    return vectors


def with_empty_last_segment(base: dict[str, Any], plaintext: bytes) -> bytes:
    """What an encryptor writes that believes one more byte follows, and then is told that none does."""
    key, aad = bytes.fromhex(base["key_material"]), bytes.fromhex(base["associated_data"])
    encryptor = crypto.AesGcmEncryptor(key, aad=aad, segment_size=base["segment_size"])
    ciphertext = encryptor.header + encryptor.update(plaintext + b"x")
    encryptor._buffer.clear()  # no public way leads here
    return ciphertext + encryptor.finish()


def write(name: str, made_by: str, vectors: list[dict[str, Any]], **more: Any) -> None:
    with (FOLDER / name).open("x") as file:
        json.dump({"made_by": made_by, **more, "vectors": vectors}, file, indent=1)
        file.write("\n")


def main() -> None:
    for maker, made_by in [("strongroom", "strongroom, format 1"), ("tink", f"tink {version('tink')}")]:
        vectors = [vector(maker, segment_size, length) for segment_size, lengths in LENGTHS.items() for length in lengths]
        write(f"{maker}.json", made_by, vectors)
        if maker == "tink":
            base = next(each for each in vectors if each["name"] == "tink-64-104")
            write("damaged.json", made_by, damages(base), base=base["name"])


if __name__ == "__main__":
    main()
