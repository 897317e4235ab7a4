"""What the first and the last bytes of an image's file tell."""

from __future__ import annotations

HEAD = TAIL = 32  # bytes at a file's beginning, and at its end
JPEG, PNG, BMP, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"  # WebP is RIFF
JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"


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
