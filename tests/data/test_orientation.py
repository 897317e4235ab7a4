"""Which images are turned: those that mmcv turns, whatever else their files say."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import mmcv
import numpy as np
import pytest
from PIL import Image

from mimbench.data import look
from mimbench.data.decode import CorruptImage, decode, label_map
from mimbench.data.files import HEIGHT, TURNED, WIDTH

EXIF = Image.Exif()
EXIF[0x0112] = 6
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
ENTRIES = struct.pack(">HHIIHHIHH", 0x010F, 5, 1, 38, 0x0112, 3, 1, 6, 0)  # Make as a fraction; orientation 6
BROKEN = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + ENTRIES + struct.pack(">III", 0, 1, 2)
FILES = {
    "exif.jpg": {"exif": EXIF, "quality": 100},
    "xmp.jpg": {"xmp": XMP, "quality": 100},
    "both.jpg": {"xmp": XMP, "exif": Image.Exif(), "quality": 100},
    "broken.jpg": {"exif": BROKEN, "quality": 100},
    "exif.png": {"exif": EXIF},
    "exif.webp": {"exif": EXIF, "lossless": True},
    "xmp.webp": {"xmp": XMP, "lossless": True},
    "exif.tif": {"exif": EXIF},
    "plain.bmp": {},
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_turned_as_mmcv_turns_it(name: str, tmp_path: Path) -> None:
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (3, 5, 3)), np.ones((8, 8, 1)))
    file = tmp_path / name
    Image.fromarray(pixels.astype(np.uint8)).save(file, **FILES[name])
    shown = mmcv.imread(file, channel_order="rgb")
    assert np.abs(decode(file, upright=True).astype(int) - shown).max() <= 2
    facts = look.SIZES.at(str(file))
    assert (facts[HEIGHT], facts[WIDTH]) == shown.shape[:2]
    assert facts[TURNED] == (shown.shape[0] > shown.shape[1])  # it lay on its side


ASYMMETRIC = Image.fromarray(
    np.kron(np.random.default_rng(0).integers(0, 255, (3, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
)


def written(form: str, **how: object) -> bytes:
    file = io.BytesIO()
    ASYMMETRIC.save(file, form, **how)
    return file.getvalue()


def with_segments(*contents: bytes) -> bytes:
    """A JPEG file that has these APP1 segments before all others."""
    plain = written("JPEG", quality=100, subsampling=0)
    parts = [b"\xff\xe1" + struct.pack(">H", len(each) + 2) + each for each in contents]
    return plain[:2] + b"".join(parts) + plain[2:]


def with_chunks(*contents: bytes, behind: bool = False) -> bytes:
    """A PNG file that has these eXIf chunks before or behind its pixels."""
    plain = written("PNG")
    place = plain.index(b"IEND" if behind else b"IDAT") - 4
    chunks = [b"eXIf" + each for each in contents]
    parts = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    return plain[:place] + b"".join(parts) + plain[place:]


def block(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """EXIF with a description, a maker, an orientation, a resolution, in this order."""
    entries = [(0x010E, 2, 20, 100), (0x010F, 2, 9, 130), (0x0112, kind, 1, orientation), (0x011A, 5, 1, 150)]
    packed = b""
    for tag, form, count, value in entries:
        short = form == 3 or (form == 1 and order == "<")
        packed += struct.pack(f"{order}HHI", tag, form, count)
        packed += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(entries)) + packed + bytes(120)


def assert_as_mmcv(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    shown = mmcv.imfrombytes(content, channel_order="rgb")
    found = decode(file, upright=True)
    assert found.shape == shown.shape, content
    assert np.abs(found.astype(int) - shown).mean() < 4, content
    facts = look.SIZES.at(str(file))
    assert (facts[HEIGHT], facts[WIDTH]) == shown.shape[:2]
    if not content.startswith(b"II"):  # Pillow turns TIFF images in any case
        assert facts[TURNED] == (not np.array_equal(found, decode(file)))


EXIF_BEFORE = b"Exif\0\0"
ODD = {
    "of 32 bits": with_segments(EXIF_BEFORE + block(6, kind=4)),
    "of 32 bits, II": with_segments(EXIF_BEFORE + block(6, "<", kind=4)),
    "of 8 bits, II": with_segments(EXIF_BEFORE + block(6, "<", kind=1)),
    "after XMP": with_segments(b"http://ns.adobe.com/xap/1.0/\0" + XMP, EXIF_BEFORE + block(6)),
    "two": with_segments(EXIF_BEFORE + block(6), EXIF_BEFORE + block(3)),
    "empty, then another": with_segments(EXIF_BEFORE, EXIF_BEFORE + block(6)),
    "another beginning": with_segments(b"EXIF\0\1" + block(8)),
    "beyond the end": with_segments(EXIF_BEFORE + block(6)[:-100]),
    "an entry cut off": with_segments(EXIF_BEFORE + block(6)[:44]),
    "chunk": with_chunks(block(5)),
    "chunk behind the pixels": with_chunks(block(6), behind=True),
    "two chunks": with_chunks(block(6), block(3)),
    "chunk with JPEG's beginning": with_chunks(EXIF_BEFORE + block(6)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_exif_is_read_as_mmcv_reads_it(name: str, tmp_path: Path) -> None:
    assert_as_mmcv(ODD[name], tmp_path / "x")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("order", "<>")
def test_damaged_exif_is_read_as_mmcv_reads_it(form: str, order: str, tmp_path: Path) -> None:
    draw = random.Random(f"{form} {order}")
    for _ in range(150):
        exif = bytearray(block(draw.randint(1, 8), order))
        for _ in range(draw.randint(1, 3)):
            exif[draw.randrange(62)] = draw.choice([0, 1, 2, 6, 255, draw.randrange(256)])
        content = with_chunks(bytes(exif)) if form == "PNG" else with_segments(EXIF_BEFORE + exif)
        assert_as_mmcv(content, tmp_path / "x")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiff_images_on_their_side(mode: str, compression: str, tmp_path: Path) -> None:
    """Also those that Pillow would map into memory, if it had the file's name."""
    plain = ASYMMETRIC.convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        plain = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
    plain.save(tmp_path / "plain.tif", compression=compression)
    plain.save(tmp_path / "x.tif", compression=compression, tiffinfo={0x0112: 6})
    wanted = np.rot90(decode(tmp_path / "plain.tif"), -1)
    for upright in (False, True):
        assert (decode(tmp_path / "x.tif", upright=upright) == wanted).all()
    assert look.SIZES.at(str(tmp_path / "x.tif"))[WIDTH : HEIGHT + 1] == (24, 40)
    if mode in ("L", "P"):
        assert label_map(tmp_path / "x.tif").shape == (40, 24)


def tiff(pixels: bytes, bits: int, kind: int, *more: tuple[int, int, int, bytes]) -> bytes:
    """A grey TIFF file of 3 x 2 pixels, by its specification. kind: 1 for unsigned, 2 for signed numbers."""
    numbers = {256: 3, 257: 2, 258: bits, 259: 1, 262: 1, 273: 8, 278: 2, 279: len(pixels), 339: kind}
    entries = [(tag, 3, 1, struct.pack("<H", value)) for tag, value in numbers.items()] + list(more)
    packed = b"".join(struct.pack("<HHI", *each[:3]) + each[3].ljust(4, b"\0") for each in sorted(entries))
    start = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    return start + struct.pack("<H", len(entries)) + packed + bytes(4)


MALFORMED = {
    "maker as a fraction": (271, 5, 1, struct.pack("<I", 8)),
    "EXIF at no place": (34665, 4, 1, struct.pack("<I", 10**7)),
    "EXIF at a text": (34665, 2, 4, b"abc"),
    "EXIF in the pixels": (34665, 4, 1, struct.pack("<I", 8)),
    "GPS of 16 bits": (34853, 3, 1, struct.pack("<H", 1)),
    "XMP as numbers": (700, 3, 1, struct.pack("<H", 60)),
    "XMP that turns": (700, 1, len(XMP), struct.pack("<I", 8)),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("orientation", [None, 6])
def test_malformed_entries_do_not_stop_a_tiff_image(
    name: str, orientation: int | None, tmp_path: Path
) -> None:
    entries = [MALFORMED[name]]
    if orientation:
        entries.append((0x0112, 3, 1, struct.pack("<H", orientation)))
    pixels = bytes(range(0, 60, 10)) + (XMP if "turns" in name else b"")
    assert_as_mmcv(tiff(pixels, 8, 1, *entries), tmp_path / "x.tif")


def test_grey_of_12_bits_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(bytes.fromhex("000800fff0 4002000100"), 12, 1))
    assert decode(tmp_path / "x.tif")[..., 0].tolist() == [[0, 128, 255], [64, 32, 1]]


def test_grey_of_signed_numbers_has_no_known_range(tmp_path: Path) -> None:
    for pixels in ([-5, 0, 5, 9, 300, 32767], [0, 1, 2, 3, 4, 5]):
        (tmp_path / "x.tif").write_bytes(tiff(struct.pack("<6h", *pixels), 16, 2))
        with pytest.raises(CorruptImage, match="signed numbers, of unknown range"):
            decode(tmp_path / "x.tif")


def test_grey_of_32_bits_has_no_known_range(tmp_path: Path) -> None:
    """Whatever its values are: a range that fits 8 or 16 bits may be chance."""
    file = tmp_path / "x.tif"
    for high in (1, 255, 65535, 70_000):
        Image.fromarray(np.full((4, 4), high, np.int32)).save(file)
        with pytest.raises(CorruptImage, match="32 bits, of unknown range"):
            decode(file)
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png").max() == 255


def test_a_size_beyond_memory_is_that_of_a_damaged_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While pixels are decoded, it is the machine that lacks memory: then nothing is said of the image."""
    ASYMMETRIC.save(tmp_path / "x.png")

    def fail(*args: object, **more: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "convert", fail)
        with pytest.raises(MemoryError):
            decode(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(CorruptImage):
        decode(tmp_path / "x.png")


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, OverflowError, NotImplementedError])
def test_whatever_pillow_raises_is_an_image_that_does_not_decode(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(file)

    def fail(*args: object, **more: object) -> None:
        raise error("of the library")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(CorruptImage):
        decode(file)
