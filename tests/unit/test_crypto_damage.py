"""Whatever was done to an object, its row or its place: an error, never other bytes (INV-02, INV-03, INV-05, F-06..F-09)."""

import itertools
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.objects import AAD, MATERIAL, boundaries, opened, pieces, sealed
from vault import crypto


S = 64
FULL = 8 + 48 + 48  # plaintext bytes that end with a full segment
LENGTHS = [0, 1, 8, 9, 60, FULL, FULL + 1, 150]


def content(length: int) -> bytes:
    return bytes(index * 7 % 256 for index in range(length))


def with_flip(data: bytes, position: int, flip: int = 1) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= flip
    return bytes(damaged)


def test_open_object_with_a_flipped_byte(subtests: pytest.Subtests) -> None:
    """Every byte of it: header, ciphertext, tags. The segments that were not hit still open, each to its own bytes."""
    for length, flip in itertools.product(LENGTHS, [0x01, 0x80, 0xFF]):
        with subtests.test(length=length, flip=flip):
            plaintext = content(length)
            ciphertext = sealed(plaintext, segment_size=S)
            layout = crypto.Layout(length, S)
            decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=ciphertext[:40], layout=layout)

            for position in range(len(ciphertext)):
                for index, piece in enumerate(pieces(with_flip(ciphertext, position, flip), layout)):
                    if index == position // S:
                        with pytest.raises(crypto.CorruptObject):
                            decryptor.decrypt(index, piece)
                    else:
                        assert decryptor.decrypt(index, piece) == plaintext[layout.offset_of(index) : layout.offset_of(index + 1)]


def test_open_object_with_a_flipped_byte_in_the_rows_header(subtests: pytest.Subtests) -> None:
    for length in LENGTHS:
        ciphertext, layout = sealed(content(length), segment_size=S), crypto.Layout(length, S)
        with subtests.test(length=length):
            for position in range(40):
                header = with_flip(ciphertext[:40], position)
                for index, piece in enumerate(pieces(ciphertext, layout)):
                    with pytest.raises(crypto.CorruptObject):
                        crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=header, layout=layout).decrypt(index, piece)


def test_open_object_with_the_same_flipped_byte_in_both_headers(subtests: pytest.Subtests) -> None:
    """The header is authenticated by what it does, not only by the row's copy of it."""
    for length in LENGTHS:
        with subtests.test(length=length):
            for position in range(40):
                damaged = with_flip(sealed(content(length), segment_size=S), position)
                with pytest.raises(crypto.CorruptObject):
                    opened(damaged, length=length, segment_size=S)


def segments_of(ciphertext: bytes) -> list[bytes]:
    """The first comes with the header."""
    return [ciphertext[start : start + S] for start in range(0, len(ciphertext), S)]


def swaps(ciphertext: bytes) -> list[bytes]:
    """Segments in every other order, and the first two with the header where it was."""
    segments = segments_of(ciphertext)
    swapped = [b"".join(order) for order in itertools.permutations(segments)][1:]
    header, first = segments[0][:40], segments[0][40:]
    return swapped + [header + b"".join(order) for order in list(itertools.permutations([first, *segments[1:]]))[1:]]


def truncations(ciphertext: bytes) -> list[bytes]:
    return [ciphertext[:size] for size in range(len(ciphertext))]


def extensions(ciphertext: bytes) -> list[bytes]:
    segments = segments_of(ciphertext)
    return [ciphertext + tail for tail in (b"\0", bytes(15), bytes(16), bytes(17), bytes(S), *segments, ciphertext)]


def duplications(ciphertext: bytes) -> list[bytes]:
    segments = segments_of(ciphertext)
    doubled = [[*segments[: index + 1], *segments[index:]] for index in range(len(segments))]
    overwritten = [
        [*segments[:target], segments[source], *segments[target + 1 :]]
        for source, target in itertools.permutations(range(len(segments)), 2)
    ]
    return [b"".join(order) for order in doubled + overwritten]


def omissions(ciphertext: bytes) -> list[bytes]:
    segments = segments_of(ciphertext)
    dropped = [segments[:index] + segments[index + 1 :] for index in range(len(segments))]
    return [b"".join(order) for order in dropped] + [ciphertext[:at] + ciphertext[at + 1 :] for at in range(len(ciphertext))]


@pytest.mark.parametrize("damage", [swaps, truncations, extensions, duplications, omissions])
def test_open_object_with_bytes_moved(damage: Callable[[bytes], list[bytes]], subtests: pytest.Subtests) -> None:
    """Under the row that it was written for, and under every row whose length would fit the damaged object."""
    lengths = defaultdict(set)  # by the size of the object
    for length in range(1000):
        lengths[crypto.Layout(length, S).object_size].add(length)

    for length in (0, 1, 8, 9, 56, FULL, FULL + 1, FULL + 48):
        ciphertext = sealed(content(length), segment_size=S)
        with subtests.test(length=length):
            for damaged in damage(ciphertext):
                assert damaged != ciphertext
                for row_length in {length} | lengths[len(damaged)]:
                    with pytest.raises(crypto.CorruptObject):
                        opened(damaged, length=row_length, segment_size=S, header=ciphertext[:40])


def test_open_object_under_a_row_of_another_length(subtests: pytest.Subtests) -> None:
    for length in (8, 9, FULL, 150):
        ciphertext = sealed(content(length), segment_size=S)
        with subtests.test(length=length):
            for other in {*range(length + 60)} - {length}:
                with pytest.raises(crypto.CorruptObject):
                    opened(ciphertext, length=other, segment_size=S)


def test_open_object_under_a_row_of_another_segment_size(subtests: pytest.Subtests) -> None:
    """An open question in Tink's own source: a larger segment size must not move bytes. Here the key depends on it too."""
    for length in (0, 8, 9, FULL, 150):
        ciphertext = sealed(content(length), segment_size=S)
        with subtests.test(length=length):
            for other in {*range(57, 300)} - {S}:
                if crypto.Layout(length, other).segments > 1 or crypto.Layout(length, S).segments > 1:
                    with pytest.raises(crypto.CorruptObject):
                        opened(ciphertext, length=length, segment_size=other)


def test_open_object_at_another_place_or_with_another_key(subtests: pytest.Subtests) -> None:
    for length in LENGTHS:
        ciphertext, layout = sealed(content(length), segment_size=S), crypto.Layout(length, S)
        for material, aad in [(MATERIAL, AAD + b"x"), (MATERIAL, b""), (MATERIAL, AAD[:-1]), (MATERIAL[::-1], AAD)]:
            decryptor = crypto.AesGcmDecryptor(material, aad=aad, header=ciphertext[:40], layout=layout)
            for index, piece in enumerate(pieces(ciphertext, layout)):
                with subtests.test(length=length, material=material, aad=aad, index=index), pytest.raises(crypto.CorruptObject):
                    decryptor.decrypt(index, piece)


def test_open_other_object_of_same_size(subtests: pytest.Subtests) -> None:
    """An older version, or another file's object, even under the very same key material: whole and segment by segment."""
    for length in LENGTHS:
        older, newer = sealed(content(length), segment_size=S), sealed(content(length), segment_size=S)
        assert older != newer

        layout = crypto.Layout(length, S)
        decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=newer[:40], layout=layout)
        for index, piece in enumerate(pieces(older, layout)):
            with subtests.test(length=length, index=index), pytest.raises(crypto.CorruptObject):
                decryptor.decrypt(index, piece)
            if index == 0:
                with subtests.test(length=length, header="newer"), pytest.raises(crypto.CorruptObject):
                    decryptor.decrypt(index, memoryview(newer[:40] + bytes(piece[40:])))


def test_open_segment_at_another_index() -> None:
    ciphertext = sealed(content(FULL + 48), segment_size=S)
    layout = crypto.Layout(FULL + 48, S)
    decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=ciphertext[:40], layout=layout)

    segments = list(pieces(ciphertext, layout))
    for index, other in itertools.permutations(range(layout.segments), 2):
        with pytest.raises(crypto.CorruptObject):
            decryptor.decrypt(index, segments[other])
    for index in (layout.segments, layout.segments + 1):
        for segment in (*segments, memoryview(b"")):
            with pytest.raises(crypto.CorruptObject):
                decryptor.decrypt(index, segment)


@given(st.sampled_from([57, 64, 100]), st.binary(max_size=300), st.data())
def test_open_object_with_anything_changed(segment_size: int, plaintext: bytes, data: st.DataObject) -> None:
    """Any stretch of it replaced by any bytes."""
    ciphertext = sealed(plaintext, segment_size=segment_size)
    start = data.draw(st.integers(0, len(ciphertext)))
    stop = data.draw(st.integers(start, len(ciphertext)))
    damaged = ciphertext[:start] + data.draw(st.binary(max_size=200)) + ciphertext[stop:]

    if damaged == ciphertext:
        return
    with pytest.raises(crypto.CorruptObject):
        opened(damaged, length=len(plaintext), segment_size=segment_size, header=ciphertext[:40])


def test_open_bytes_that_are_no_object(subtests: pytest.Subtests) -> None:
    """A storage error page with status 200 (F-06), or nothing but zeros, of exactly the right size."""
    header = sealed(b"", segment_size=4096)[:40]

    for length in boundaries(4096):
        size = crypto.Layout(length, 4096).object_size
        for page in (bytes(size), (b"<Error><Code>InternalError</Code></Error>" * 400)[:size]):
            with subtests.test(length=length, page=page[:7]), pytest.raises(crypto.CorruptObject):
                opened(page, length=length, segment_size=4096, header=header)
