"""The format is Tink's, not ours: stock Tink opens what we write and we open what it writes, at every boundary."""

import random
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.unit import stock
from tests.unit.objects import AAD, MATERIAL, boundaries, opened, sealed
from vault import crypto


KIB = 1024
SIZES = [
    (segment_size, length)
    for segment_size in (57, 64, 4 * KIB, 64 * KIB, 128 * KIB, 1024 * KIB)
    for length in boundaries(segment_size)
]


def content(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_open_object_of_stock_tink(subtests: pytest.Subtests) -> None:
    for segment_size, length in SIZES:
        with subtests.test(segment_size=segment_size, length=length):
            plaintext = content(length)

            theirs = stock.encrypt(plaintext, key_material=MATERIAL, aad=AAD, segment_size=segment_size)

            assert len(theirs) == crypto.Layout(length, segment_size).object_size
            assert opened(theirs, length=length, segment_size=segment_size) == plaintext


def test_stock_tink_opens_our_object(subtests: pytest.Subtests) -> None:
    for segment_size, length in SIZES:
        with subtests.test(segment_size=segment_size, length=length):
            plaintext = content(length)

            ours = sealed(plaintext, segment_size=segment_size)

            assert len(ours) == crypto.Layout(length, segment_size).object_size
            assert stock.decrypt(ours, key_material=MATERIAL, aad=AAD, segment_size=segment_size) == plaintext


def test_stock_tink_opens_our_object_of_more_segments_than_two_counter_bytes_hold() -> None:
    plaintext = content(70_000 * 41)

    ours = sealed(plaintext, segment_size=57)

    assert stock.decrypt(ours, key_material=MATERIAL, aad=AAD, segment_size=57) == plaintext
    assert opened(ours, length=len(plaintext), segment_size=57) == plaintext


class Forgiven(NamedTuple):
    """What stock Tink opens although nobody would have written it so, and the row's length for it."""

    ciphertext: bytes
    length: int


def with_garbage(segment_size: int, plaintext: bytes) -> Forgiven:
    return Forgiven(sealed(plaintext, segment_size=segment_size) + bytes(24), len(plaintext))


def with_empty_last_segment(segment_size: int, plaintext: bytes) -> Forgiven:
    """Full segments, none of them marked as the last, and then a last one without a byte."""
    header = bytes([crypto.HEADER_SIZE]) + bytes(range(32, 71))
    aead = AESGCM(crypto.hkdf(MATERIAL, salt=header[1:33], info=AAD, length=32))
    layout = crypto.Layout(len(plaintext), segment_size)
    segments = [
        aead.encrypt(crypto.segment_nonce(header[33:], index, last=False), plaintext[start:end], None)
        for index in range(layout.segments)
        for start, end in [(layout.offset_of(index), layout.offset_of(index + 1))]
    ]
    segments.append(aead.encrypt(crypto.segment_nonce(header[33:], layout.segments, last=True), b"", None))
    return Forgiven(header + b"".join(segments), len(plaintext))


@pytest.mark.parametrize("forgive", [with_garbage, with_empty_last_segment])
def test_open_object_that_only_stock_tink_forgives(forgive: Callable[[int, bytes], Forgiven], subtests: pytest.Subtests) -> None:
    for segment_size, segments in product([64, 4096], [1, 2, 3]):
        with subtests.test(segment_size=segment_size, segments=segments):
            plaintext = content(segments * (segment_size - crypto.TAG_SIZE) - crypto.HEADER_SIZE)  # the last segment is full

            forgiven = forgive(segment_size, plaintext)

            assert stock.decrypt(forgiven.ciphertext, key_material=MATERIAL, aad=AAD, segment_size=segment_size) == plaintext
            with pytest.raises(crypto.CorruptObject):
                opened(forgiven.ciphertext, length=forgiven.length, segment_size=segment_size)
            # No other length in the row makes it acceptable either.
            for length in range(max(0, forgiven.length - 8), forgiven.length + 24):
                with pytest.raises(crypto.CorruptObject):
                    opened(forgiven.ciphertext, length=length, segment_size=segment_size)


def test_stock_tink_refuses_what_we_refuse(subtests: pytest.Subtests) -> None:
    for segment_size, length in [(57, 1), (64, 100), (4096, 10_000)]:
        ours = sealed(content(length), segment_size=segment_size)
        for other in ({"aad": AAD + b"x"}, {"key_material": MATERIAL[::-1]}):
            with subtests.test(segment_size=segment_size, other=other), pytest.raises(stock.Refused):
                stock.decrypt(ours, **{"key_material": MATERIAL, "aad": AAD} | other, segment_size=segment_size)
