"""The canonical zip format of a package: every byte is determined by the files, so that the same Python version reproduces it.

A zip can hide data where no unpacker looks: before its members, between them, in their headers and after its end. `check` rejects
such data. Section numbers refer to APPNOTE.TXT 6.3.10.
"""

import struct
import zipfile
from collections.abc import Iterator, Sequence
from itertools import product
from typing import BinaryIO, Final


EPOCH: Final = (1980, 1, 1, 0, 0, 0)
DOS_EPOCH: Final = (0, 33)  # EPOCH as DOS time and date
UNIX: Final = 3
MODE: Final = 0o600 << 16
PLAIN, ZIP64 = 20, 45  # version needed to extract (4.4.3)
MASKED: Final = 0xFFFFFFFF  # replaces a number that is in the extra field (4.5.3)
DESCRIBED, UTF8 = 0x08, 0x800  # flags: CRC and lengths follow the content; the name is UTF-8 (4.4.4)


class NonCanonicalZip(Exception):
    """The zip was written by another program or contains bytes that belong to no file."""


def new_member(name: str, length: int) -> zipfile.ZipInfo:
    """An uncompressed member, so that no byte depends on a compressor. `length` in bytes."""
    member = zipfile.ZipInfo(name, EPOCH)
    member.create_system, member.external_attr, member.file_size = UNIX, MODE, length
    return member


def check(package: zipfile.ZipFile, file: BinaryIO) -> None:
    """Checks that each byte of the file is as `zipfile` writes such members to a stream.

    The caller must have read all members, which verifies their lengths and CRCs. Accepts 32-bit and 64-bit numbers for any
    length, and the headers of Python up to 3.11.2 as well as those of later versions.

    Raises: NonCanonicalZip.
    """
    members = package.infolist()
    file.seek(0)
    for member in members:
        is_plain = _expect(file, _headers(member)) == 0
        file.seek(member.file_size, 1)
        lengths = "2L" if is_plain else "2Q"
        _expect(file, [struct.pack(f"<4sL{lengths}", b"PK\7\x08", member.CRC, member.file_size, member.file_size)])  # 4.3.9
    start = file.tell()
    for member in members:
        _expect(file, list(_entries(member)))
    _expect(file, list(_ends(len(members), start, file.tell())))
    if file.read(1):
        raise NonCanonicalZip


def _expect(file: BinaryIO, forms: Sequence[bytes]) -> int:
    """Reads the next bytes and returns the index of the form that they match."""
    start = file.tell()
    for number, form in enumerate(forms):
        file.seek(start)
        if file.read(len(form)) == form:
            return number
    raise NonCanonicalZip


def _name(member: zipfile.ZipInfo) -> tuple[bytes, int]:
    return member.filename.encode(), DESCRIBED if member.filename.isascii() else DESCRIBED | UTF8


def _headers(member: zipfile.ZipInfo) -> list[bytes]:
    """The possible local headers, written before the length of the content is known (4.3.7).

    The second and third announce 64-bit lengths, as written by Python from 3.11.7 and by Python 3.11.2.
    """
    name, flags = _name(member)
    zeros = struct.pack("<HHQQ", 1, 16, 0, 0)
    return [
        struct.pack("<4s5H3L2H", b"PK\3\4", version, flags, 0, *DOS_EPOCH, 0, length, length, len(name), len(extra))
        + name
        + extra
        for version, length, extra in ((PLAIN, 0, b""), (ZIP64, MASKED, zeros), (PLAIN, 0, zeros))
    ]


def _entries(member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The possible entries of a member in the central directory (4.3.12)."""
    name, flags = _name(member)
    for version, is_long, is_far in product((PLAIN, ZIP64), (False, True), (False, True)):
        length = MASKED if is_long else member.file_size
        offset = MASKED if is_far else member.header_offset
        large = [member.file_size] * 2 * is_long + [member.header_offset] * is_far
        extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        if max(length, offset) <= MASKED:
            versions = (version, UNIX, version, 0)
            numbers = (member.CRC, length, length, len(name), len(extra), 0, 0, 0, MODE, offset)
            yield struct.pack("<4s4B4H3L5H2L", b"PK\1\2", *versions, flags, 0, *DOS_EPOCH, *numbers) + name + extra


def _ends(count: int, start: int, end: int) -> Iterator[bytes]:
    """The possible records after the central directory (4.3.14 to 4.3.16)."""
    numbers = (min(count, 0xFFFF), min(end - start, MASKED), min(start, MASKED))
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, numbers[0], *numbers, 0)
    if (count, end - start, start) == numbers:
        yield last
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, ZIP64, ZIP64, 0, 0, count, count, end - start, start)
    yield large + struct.pack("<4sLQL", b"PK\6\7", 0, end, 1) + last
