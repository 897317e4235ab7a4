"""What the first bytes of an image's file tell."""

from __future__ import annotations

HEAD = 32  # bytes at a file's beginning


def is_deep(head: bytes | bytearray) -> int:
    """Whether an image has 16 bits a channel, by its file's first bytes: 1, 0, or -1 if others say it."""
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) > 24:
        return int(head[24] == 16)
    return 0 if head.startswith((b"\xff\xd8\xff", b"BM", b"RIFF")) else -1  # JPEG, BMP, WebP
