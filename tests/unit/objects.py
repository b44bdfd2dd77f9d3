"""Objects for the tests of the format: made, cut into the pieces that a store would answer with, and opened."""

from collections.abc import Iterator

from vault import crypto


MATERIAL = bytes(range(32))
AAD = crypto.associated_data(
    tenant="11111111-1111-4111-8111-111111111111",
    collection="22222222-2222-4222-8222-222222222222",
    file="33333333-3333-4333-8333-333333333333",
    object_id="44444444-4444-4444-8444-444444444444",
    cipher=crypto.AES_GCM,
    segment_size=64,
)


def boundaries(segment_size: int, *, tail: int = 2) -> list[int]:
    """Plaintext lengths at, before and behind the end of each of the first segments."""
    first, capacity = segment_size - crypto.HEADER_SIZE - crypto.TAG_SIZE, segment_size - crypto.TAG_SIZE
    ends = [first + capacity * index for index in range(tail + 1)]
    return sorted({0, 1} | {max(0, end + step) for end in ends for step in (-1, 0, 1)})


def sealed(plaintext: bytes, *, segment_size: int, material: bytes = MATERIAL, aad: bytes = AAD) -> bytes:
    encryptor = crypto.AesGcmEncryptor(material, aad=aad, segment_size=segment_size)
    return encryptor.header + encryptor.update(plaintext) + encryptor.finish()


def pieces(ciphertext: bytes, layout: crypto.Layout) -> Iterator[memoryview]:
    """As many pieces as the row has segments; what is left over belongs to the last."""
    view = memoryview(ciphertext)
    for index in range(layout.segments):
        start, end = layout.object_range(index, index + 1)
        yield view[start:] if index == layout.segments - 1 else view[start:end]


def opened(
    ciphertext: bytes,
    *,
    length: int,
    segment_size: int,
    header: bytes | None = None,
    material: bytes = MATERIAL,
    aad: bytes = AAD,
) -> bytes:
    """The content, as a row of `length` plaintext bytes and `header` sees it."""
    layout = crypto.Layout(length, segment_size)
    header = ciphertext[: crypto.HEADER_SIZE] if header is None else header
    decryptor = crypto.AesGcmDecryptor(material, aad=aad, header=header, layout=layout)
    return b"".join(decryptor.decrypt(index, piece) for index, piece in enumerate(pieces(ciphertext, layout)))
