"""What the bytes of an image's file tell without a decoder: depth, whether it is cut off, orientation."""

from __future__ import annotations

import struct
from typing import BinaryIO

HEAD = TAIL = 32  # bytes at a file's beginning, and at its end
JPEG, PNG, BMP, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"  # WebP is RIFF
JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
ORIENTATION = 0x0112  # the EXIF entry
TEXTS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298)  # EXIF entries: as long as they say
NUMBERS = {0x011A: 8, 0x011B: 8, 0x013E: 16, 0x013F: 48, 0x0211: 24, 0x0214: 48}  # EXIF entries to bytes


def is_deep(head: bytes) -> int:
    """Whether an image has 16 bits a channel, by the first bytes: 1, 0, or -1 if other bytes decide."""
    if head.startswith(PNG) and len(head) > 24:
        return int(head[24] == 16)
    return 0 if head.startswith((JPEG, BMP, RIFF)) else -1


def is_suspect(head: bytes, tail: bytes, size: int) -> int:
    """Whether an image may be cut off, by both ends of its file: 1, 0, or -1 if its header must be read.

    Whole files can look so, too: some have other bytes after their end. Only decoding tells.
    """
    if size == 0:
        return 1
    if head.startswith(JPEG):
        return int(not tail.rstrip(b"\0").endswith(JPEG_END))
    if head.startswith(PNG):
        return int(not tail.endswith(PNG_END))
    if head.startswith(RIFF):
        return int(int.from_bytes(head[4:8], "little") + 8 > size)
    if head.startswith(BMP) and int.from_bytes(head[2:6], "little") > size:
        return 1
    return -1


def orientation(file: BinaryIO) -> int:
    """How OpenCV, and mmcv with it, turns a JPEG or PNG image: EXIF's 1 to 8. Other formats have 1.

    OpenCV takes the first APP1 segment of a JPEG file for EXIF, and the first eXIf chunk of a PNG file. It
    reads entries up to one that leads beyond the end, and takes the orientation for a number of 16 bits,
    whatever its type. No entry but these is looked at: malformed ones do not matter.
    """
    file.seek(0)
    head = file.read(8)
    if head.startswith(JPEG):
        return _by_exif(_first_segment(file)[6:])
    return _by_exif(_first_chunk(file)) if head == PNG else 1


def _first_segment(file: BinaryIO) -> bytes:
    """The first APP1 segment of a JPEG file."""
    file.seek(2)
    while len(start := file.read(4)) == 4:
        marker = start[1]
        if start[0] != 0xFF or marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:
            file.seek(-3, 1)  # no segment begins here
            continue
        if marker in (0xD9, 0xDA):  # the end, the pixels
            break
        size = max(int.from_bytes(start[2:], "big") - 2, 0)
        if marker == 0xE1:
            return file.read(size)
        file.seek(size, 1)
    return b""


def _first_chunk(file: BinaryIO) -> bytes:
    """The first eXIf chunk of a PNG file, which may stand behind the pixels; empty if libpng refuses it."""
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        size = int.from_bytes(start[:4], "big")
        if start[4:] == b"eXIf":
            found = file.read(size)
            return found if found.startswith((b"II", b"MM")) else b""
        file.seek(size + 4, 1)
    return b""


def _by_exif(exif: bytes) -> int:
    """The orientation in an EXIF block; 1 without one. After II, numbers begin with their lowest byte."""
    order = "<" if exif.startswith(b"II") else ">"
    try:
        mark, start = struct.unpack_from(f"{order}HI", exif, 2)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * count, 12) if mark == 42 else ():
            (tag,) = struct.unpack_from(f"{order}H", exif, place)
            if tag == ORIENTATION:
                (found,) = struct.unpack_from(f"{order}H", exif, place + 8)
                return found if 1 <= found <= 8 else 1
            if tag in NUMBERS or tag in TEXTS:
                length, where = struct.unpack_from(f"{order}II", exif, place + 4)
                if (tag in NUMBERS or length > 4) and where + NUMBERS.get(tag, length) > len(exif):
                    return 1
    except struct.error:  # it is cut off
        pass
    return 1
