"""Keys, layout, encryption and opening of one object."""

import base64
import hashlib
import hmac
import struct
import traceback
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.objects import AAD, MATERIAL, boundaries, opened, pieces, sealed
from vault import crypto


SALT = bytes(range(100, 132))
IDS = {"tenant": "t", "collection": "c", "file": "f", "object_id": "o", "cipher": crypto.AES_GCM, "segment_size": 64}


# --- Encoding and derivation ---


def decode(encoded: bytes) -> Iterator[str | int | bytes]:
    while encoded:
        kind, (length,) = encoded[:1], struct.unpack(">I", encoded[1:5])
        field, encoded = encoded[5 : 5 + length], encoded[5 + length :]
        assert len(field) == length
        assert kind in {b"i", b"s", b"b"}
        yield int(field) if kind == b"i" else field.decode() if kind == b"s" else field


@given(st.lists(st.integers() | st.text(st.characters(codec="utf-8")) | st.binary()))
@example(["ab", "c"])
@example(["a", "bc"])
@example([1, "1", b"1"])
@example([b"s\x00\x00\x00\x01a", "a"])
def test_encode_has_a_left_inverse(fields: list[str | int | bytes]) -> None:
    """So no two lists of fields have one encoding."""
    decoded = list(decode(crypto.encode(*fields)))

    assert decoded == fields
    assert [type(field) for field in decoded] == [type(field) for field in fields]


def test_encode_field_of_another_type(subtests: pytest.Subtests) -> None:
    for field in (None, 1.0, ["a"]):
        with subtests.test(field=field), pytest.raises((TypeError, struct.error)):
            crypto.encode("a", field)  # type: ignore[arg-type]


def test_associated_data_is_what_the_documentation_says() -> None:
    fields = [
        b"s\0\0\0\x11strongroom/object",
        b"i\0\0\0\x011",
        b"s\0\0\0\x01t",
        b"s\0\0\0\x01c",
        b"s\0\0\0\x01f",
        b"s\0\0\0\x01o",
    ]

    assert crypto.associated_data(**IDS) == b"".join(fields) + b"s\0\0\0\x07AES-GCM" + b"i\0\0\0\x0264"  # type: ignore[arg-type]


OTHER_IDS = {name: IDS | {name: {"segment_size": 65, "cipher": crypto.NONE}.get(name, "x")} for name in IDS}  # each in one field


def test_associated_data_binds_each_field() -> None:
    for name, ids in OTHER_IDS.items():
        assert crypto.associated_data(**IDS) != crypto.associated_data(**ids), name  # type: ignore[arg-type]


def hkdf_of_rfc_5869(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    pseudorandom, block, output = hmac.digest(salt, key, "sha256"), b"", b""
    for count in range(1, length // 32 + 2):
        block = hmac.digest(pseudorandom, block + info + bytes([count]), "sha256")
        output += block
    return output[:length]


def test_derive_file_key_is_hkdf_over_salt_and_associated_data() -> None:
    okm = hkdf_of_rfc_5869(b"c" * 32, SALT, b"strongroom/file/v1" + AAD, 64)

    key = crypto.derive_file_key(b"c" * 32, key_salt=SALT, aad=AAD)

    assert (key.material, key.commitment) == (okm[:32], okm[32:])


def test_derive_file_key_from_sizes_of_another_format(subtests: pytest.Subtests) -> None:
    for key_size, salt_size in {*product([0, 16, 31, 32, 33], [0, 31, 32, 33])} - {(32, 32)}:
        with subtests.test(key_size=key_size, salt_size=salt_size), pytest.raises(ValueError, match="32 bytes"):
            crypto.derive_file_key(bytes(key_size), key_salt=bytes(salt_size), aad=AAD)


def test_open_file_key() -> None:
    made = crypto.derive_file_key(b"c" * 32, key_salt=SALT, aad=AAD)

    key = crypto.recover_file_key(b"c" * 32, key_salt=SALT, aad=AAD, commitment=made.commitment)

    assert key.material == made.material


def test_open_file_key_that_the_row_does_not_commit_to(subtests: pytest.Subtests) -> None:
    commitment = crypto.derive_file_key(b"c" * 32, key_salt=SALT, aad=AAD).commitment
    others = [
        {"collection_key": b"d" * 32},
        {"key_salt": SALT[::-1]},
        {"aad": AAD + b"x"},
        {"commitment": bytes(32)},
        {"commitment": b""},
        {"commitment": commitment[:31]},
    ]
    for other in others:
        arguments = {"collection_key": b"c" * 32, "key_salt": SALT, "aad": AAD, "commitment": commitment} | other
        with subtests.test(other=other), pytest.raises(crypto.WrongKey):
            crypto.recover_file_key(arguments.pop("collection_key"), **arguments)


def test_open_file_key_for_another_place(subtests: pytest.Subtests) -> None:
    """INV-05: another tenant, collection, file, version, cipher or segment size is another key."""
    commitment = crypto.derive_file_key(b"c" * 32, key_salt=SALT, aad=crypto.associated_data(**IDS)).commitment  # type: ignore[arg-type]

    for name, ids in OTHER_IDS.items():
        with subtests.test(name), pytest.raises(crypto.WrongKey):
            crypto.recover_file_key(b"c" * 32, key_salt=SALT, aad=crypto.associated_data(**ids), commitment=commitment)  # type: ignore[arg-type]


# --- Wrapping ---


def test_unwrap_key() -> None:
    wrapped = crypto.wrap_key(b"k" * 32, b"d" * 32, context=b"context")

    assert crypto.unwrap_key(b"k" * 32, wrapped, context=b"context") == b"d" * 32
    assert AESGCM(b"k" * 32).decrypt(wrapped[:12], wrapped[12:], b"context") == b"d" * 32
    assert len(wrapped) == 60
    assert wrapped != crypto.wrap_key(b"k" * 32, b"d" * 32, context=b"context")


def test_unwrap_key_with_a_flipped_byte(subtests: pytest.Subtests) -> None:
    """F-07"""
    for position in range(60):
        wrapped = bytearray(crypto.wrap_key(b"k" * 32, b"d" * 32, context=b"context"))
        wrapped[position] ^= 1
        with subtests.test(position=position), pytest.raises(crypto.WrongKey):
            crypto.unwrap_key(b"k" * 32, bytes(wrapped), context=b"context")


def test_unwrap_key_with_another_key_or_context_or_length(subtests: pytest.Subtests) -> None:
    wrapped = crypto.wrap_key(b"k" * 32, b"d" * 32, context=b"context")

    for kek, damaged, context in [
        (b"K" * 32, wrapped, b"context"),
        (b"k" * 32, wrapped, b"other"),
        (b"k" * 32, wrapped, b""),
        (b"k" * 32, wrapped[:-1], b"context"),
        (b"k" * 32, wrapped + b"x", b"context"),
        (b"k" * 32, b"", b"context"),
    ]:
        with subtests.test(kek=kek, damaged=damaged, context=context), pytest.raises(crypto.WrongKey):
            crypto.unwrap_key(kek, damaged, context=context)


def test_unwrap_key_of_another_size_under_the_right_key() -> None:
    """Authentic, and not a key of ours all the same."""
    wrapped = bytes(12) + AESGCM(b"k" * 32).encrypt(bytes(12), b"d" * 16, b"context")

    with pytest.raises(crypto.WrongKey):
        crypto.unwrap_key(b"k" * 32, wrapped, context=b"context")


def test_wrap_key_of_another_size(subtests: pytest.Subtests) -> None:
    for kek, key in [(16, 32), (24, 32), (32, 16), (32, 0), (32, 64), (0, 32)]:
        with subtests.test(kek=kek, key=key), pytest.raises(ValueError, match="32 bytes"):
            crypto.wrap_key(bytes(kek), bytes(key), context=b"context")


def test_new_keys_differ() -> None:
    keys = {crypto.new_key() for _ in range(100)}

    assert len(keys) == 100
    assert {len(key) for key in keys} == {32}


# --- Layout ---


LENGTHS = [0, 1, 100, 2**31, 5 * 1024**3 + 1, 100 * 1024**3, 2**42 + 7]


def test_layout_of_large_contents_agrees_with_the_inverse() -> None:
    """Tink computes the plaintext's size from the object's; we compute the object's from the plaintext's."""
    for segment_size, length in product([4096, 65_536, 131_072, 1_048_576, 8_388_608], LENGTHS):
        layout = crypto.Layout(length, segment_size)
        segments = -(-layout.object_size // segment_size)
        assert segments == layout.segments, (segment_size, length)
        assert layout.object_size - 40 - 16 * segments == length, segment_size


@given(st.integers(57, 200), st.integers(0, 1000))
def test_layout_covers_object_and_content_without_gap(segment_size: int, length: int) -> None:
    layout = crypto.Layout(length, segment_size)

    ranges = [layout.object_range(index, index + 1) for index in range(layout.segments)]
    offsets = [layout.offset_of(index) for index in range(layout.segments + 1)]
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == layout.object_size
    assert (offsets[0], offsets[-1]) == (0, length)
    assert all(end - start == segment_size for start, end in ranges[:-1])
    for index, (start, end) in enumerate(ranges):
        plaintext = offsets[index + 1] - offsets[index]
        assert end - start == plaintext + 16 + (40 if index == 0 else 0)
        assert plaintext > 0 or length == 0
        assert all(layout.index_of(offset) == index for offset in range(offsets[index], offsets[index + 1]))


def test_layout_range_of_several_segments() -> None:
    layout = crypto.Layout(200, 64)

    assert layout.object_range(0, 2) == (0, 128)
    assert layout.object_range(2, 5) == (128, 320)
    assert layout.object_range(2, layout.segments) == (128, layout.object_size)


def test_layout_that_no_object_has(subtests: pytest.Subtests) -> None:
    for length, segment_size in [(-1, 64), (0, 56), (0, 16), (0, 0), (0, -64)]:
        with subtests.test(length=length, segment_size=segment_size), pytest.raises(ValueError, match="segment"):
            crypto.layout_of(crypto.AES_GCM, length=length, segment_size=segment_size)


def test_encrypt_in_segments_too_small(subtests: pytest.Subtests) -> None:
    for segment_size in (56, 16, 0):
        with subtests.test(segment_size=segment_size), pytest.raises(ValueError, match="segment"):
            crypto.AesGcmEncryptor(MATERIAL, aad=AAD, segment_size=segment_size)


def test_layout_of_each_cipher_that_rows_name() -> None:
    assert crypto.layout_of("AES-GCM", length=100, segment_size=64).object_size == 40 + 100 + 3 * 16
    assert crypto.layout_of("NONE", length=100, segment_size=64).object_size == 100


def test_layout_of_unknown_cipher(subtests: pytest.Subtests) -> None:
    """Anything but the exact word NONE must never read as 'no authentication'."""
    for cipher in ("", "none", "aes-gcm", "AES-GCM ", "AES-CTR"):
        with subtests.test(cipher=cipher), pytest.raises(ValueError, match="cipher"):
            crypto.layout_of(cipher, length=1, segment_size=64)


# --- Encryption ---


@given(
    st.sampled_from([57, 64, 100, 4096]),
    st.lists(st.binary(max_size=300)),
    st.sampled_from([bytes, memoryview]),
)
def test_encrypt_in_any_pieces(segment_size: int, parts: list[bytes], kind: Callable[[bytes], bytes | memoryview]) -> None:
    encryptor = crypto.AesGcmEncryptor(MATERIAL, aad=AAD, segment_size=segment_size)

    updates = [encryptor.update(kind(part)) for part in parts]
    ciphertext = encryptor.header + b"".join(updates) + encryptor.finish()

    plaintext = b"".join(parts)
    assert len(ciphertext) == crypto.Layout(len(plaintext), segment_size).object_size
    assert opened(ciphertext, length=len(plaintext), segment_size=segment_size) == plaintext


def test_encrypt_gives_segments_as_soon_as_more_bytes_follow() -> None:
    """An upload holds one segment in memory, not the file."""
    encryptor = crypto.AesGcmEncryptor(MATERIAL, aad=AAD, segment_size=64)

    assert encryptor.update(bytes(8)) == b""
    assert len(encryptor.update(b"1")) == 24
    assert encryptor.update(bytes(47)) == b""
    assert len(encryptor.update(bytes(96))) == 128


def test_encrypt_after_the_end() -> None:
    encryptor = crypto.AesGcmEncryptor(MATERIAL, aad=AAD, segment_size=64)
    encryptor.finish()

    with pytest.raises(ValueError, match="already"):
        encryptor.finish()
    with pytest.raises(ValueError, match="already"):
        encryptor.update(bytes(100))


def test_encrypt_more_segments_than_the_format_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crypto.MAX_SEGMENTS == 2**32 - 1
    monkeypatch.setattr(crypto, "MAX_SEGMENTS", 3)

    sealed(bytes(8 + 48 + 48), segment_size=64)
    with pytest.raises(OverflowError):
        sealed(bytes(8 + 48 + 48 + 1), segment_size=64)


def test_encrypt_never_uses_a_nonce_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-04, C-2, C-6: one key material, the same bytes, many attempts, and every wrapping beside them."""
    used: list[tuple[bytes, bytes]] = []

    class Recorded:
        def __init__(self, key: bytes) -> None:
            self.key, self.aead = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
            used.append((self.key, nonce))
            return self.aead.encrypt(nonce, data, associated)

    monkeypatch.setattr(crypto, "AESGCM", Recorded)
    for attempt in range(200):
        for length in (0, 1, 8, 9, 200):
            sealed(bytes(length), segment_size=64)
        crypto.wrap_key(MATERIAL, bytes(32), context=attempt.to_bytes(2))

    assert len(used) == 200 * (1 + 1 + 1 + 2 + 5 + 1)
    assert len(set(used)) == len(used)
    assert {len(nonce) for _, nonce in used} == {12}
    assert {len(key) for key, _ in used} == {32}


def test_segment_nonce_is_what_the_format_says() -> None:
    assert crypto.segment_nonce(b"prefix7", 0x01020304, last=False) == b"prefix7\x01\x02\x03\x04\x00"
    assert crypto.segment_nonce(b"prefix7", 0, last=True) == b"prefix7\x00\x00\x00\x00\x01"


def test_segment_nonce_of_another_length(subtests: pytest.Subtests) -> None:
    for size in (0, 3, 6, 8, 11):
        with subtests.test(size=size), pytest.raises(ValueError, match="length"):
            crypto.segment_nonce(bytes(size), 0, last=False)


# --- Ranges ---


@given(st.sampled_from([57, 58, 64, 100]), st.binary(max_size=400), st.data())
def test_open_any_range(segment_size: int, plaintext: bytes, data: st.DataObject) -> None:
    """Against the oracle of a slice, with the segments that the range needs and no others."""
    start = data.draw(st.integers(0, max(0, len(plaintext) - 1)), "start")
    stop = data.draw(st.integers(min(start + 1, len(plaintext)), len(plaintext)), "stop")
    ciphertext = sealed(plaintext, segment_size=segment_size)
    layout = crypto.Layout(len(plaintext), segment_size)
    decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=ciphertext[:40], layout=layout)

    first, end = layout.index_of(start), layout.index_of(max(start, stop - 1)) + 1
    fetched = memoryview(ciphertext)[slice(*layout.object_range(first, end))]
    base, _ = layout.object_range(first, end)
    whole = b""
    for index in range(first, end):
        piece_start, piece_end = layout.object_range(index, index + 1)
        whole += decryptor.decrypt(index, fetched[piece_start - base : piece_end - base])

    begin = layout.offset_of(first)
    assert whole[start - begin : stop - begin] == plaintext[start:stop]
    assert begin <= start
    assert layout.offset_of(end - 1) < stop or not plaintext  # the last segment fetched was needed
    assert layout.offset_of(first + 1) > start or not plaintext  # and so was the first


def test_open_segments_in_any_order() -> None:
    plaintext = bytes(range(200))
    ciphertext = sealed(plaintext, segment_size=64)
    layout = crypto.Layout(200, 64)
    decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=ciphertext[:40], layout=layout)

    segments = list(pieces(ciphertext, layout))
    for index in (4, 0, 3, 3, 1, 2):
        assert decryptor.decrypt(index, segments[index]) == plaintext[layout.offset_of(index) : layout.offset_of(index + 1)]


def test_open_with_a_header_of_another_format(subtests: pytest.Subtests) -> None:
    for header in (b"", bytes(40), b"\x28" + bytes(38), b"\x28" + bytes(40), b"\x18" + bytes(39)):
        with subtests.test(header=header), pytest.raises(crypto.CorruptObject):
            crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=header, layout=crypto.Layout(0, 64))


# --- NONE ---


def test_open_content_that_is_stored_as_is(subtests: pytest.Subtests) -> None:
    for length in boundaries(64):
        with subtests.test(length=length):
            plaintext = bytes(range(256))[:length]
            layout = crypto.layout_of(crypto.NONE, length=length, segment_size=64)
            writer, reader = crypto.PassThroughEncryptor(), crypto.PassThroughDecryptor(layout)

            stored = writer.header + writer.update(memoryview(plaintext)) + writer.finish()

            assert stored == plaintext
            assert layout.object_size == length
            assert layout.segments == max(1, -(-length // 64))
            assert b"".join(reader.decrypt(index, piece) for index, piece in enumerate(pieces(stored, layout))) == plaintext


def test_open_content_that_is_stored_as_is_with_another_size() -> None:
    reader = crypto.PassThroughDecryptor(crypto.layout_of(crypto.NONE, length=100, segment_size=64))

    for index, size in [(0, 63), (0, 65), (1, 35), (1, 37), (1, 0)]:
        with pytest.raises(crypto.CorruptObject):
            reader.decrypt(index, memoryview(bytes(size)))


def test_open_plain_bytes_as_an_encrypted_row() -> None:
    """No downgrade: a row that says AES-GCM never yields bytes that are merely there."""
    layout = crypto.Layout(100, 64)

    with pytest.raises(crypto.CorruptObject):
        opened(b"\x28" + bytes(layout.object_size - 1), length=100, segment_size=64)


# --- What must not show ---


def forms(secret: bytes) -> list[str]:
    listed = ", ".join(map(str, secret[:4]))
    return [secret.hex()[:16], base64.b64encode(secret).decode()[:16], repr(secret)[2:-1][:16], listed]


def shown(error: BaseException) -> str:
    links = [error, error.__cause__, error.__context__]
    told = [f"{link!r} {link} {link.args!r} {getattr(link, '__notes__', '')}" for link in links if link]
    return "\n".join(told + traceback.format_exception(error))


def test_keys_never_show() -> None:
    """C-5: neither in a repr nor in the text, arguments or chain of any error."""
    secrets = [hashlib.sha256(name).digest() for name in (b"kek", b"collection", b"salt")]
    kek, collection_key, salt = secrets
    wrapped = crypto.wrap_key(kek, collection_key, context=b"context")
    key = crypto.derive_file_key(collection_key, key_salt=salt, aad=AAD)
    ciphertext = sealed(bytes(100), segment_size=64, material=key.material)
    decryptor = crypto.AesGcmDecryptor(key.material, aad=AAD, header=ciphertext[:40], layout=crypto.Layout(100, 64))
    encryptor = crypto.AesGcmEncryptor(key.material, aad=AAD, segment_size=64)
    seen = [f"{thing!r} {thing}" for thing in (key, decryptor, encryptor)]

    encryptor.finish()
    actions: list[Callable[[], object]] = [
        lambda: crypto.unwrap_key(kek, wrapped, context=b"other"),
        lambda: crypto.unwrap_key(kek, wrapped[1:], context=b"context"),
        lambda: crypto.wrap_key(kek[1:], collection_key, context=b"context"),
        lambda: crypto.wrap_key(kek, collection_key[1:], context=b"context"),
        lambda: crypto.derive_file_key(collection_key[1:], key_salt=salt, aad=AAD),
        lambda: crypto.recover_file_key(collection_key, key_salt=salt, aad=AAD, commitment=bytes(32)),
        lambda: crypto.AesGcmEncryptor(key.material[1:], aad=AAD, segment_size=64),
        lambda: crypto.AesGcmDecryptor(key.material, aad=AAD, header=b"", layout=crypto.Layout(100, 64)),
        lambda: decryptor.decrypt(0, memoryview(bytes(64))),
        lambda: decryptor.decrypt(1, memoryview(bytes(64))),
        lambda: decryptor.decrypt(1, memoryview(bytes(63))),
        lambda: encryptor.finish(),
    ]
    for action in actions:
        with pytest.raises((crypto.WrongKey, crypto.CorruptObject, ValueError)) as caught:
            action()
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        seen.append(shown(caught.value))

    for secret in [*secrets, key.material, key.commitment]:
        assert not [form for form in forms(secret) for text in seen if form in text]
