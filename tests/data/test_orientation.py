"""Which images are turned: those that mmcv turns, whatever else their files say."""

from __future__ import annotations

import struct
from pathlib import Path

import mmcv
import numpy as np
import pytest
from PIL import Image

from mimbench.data import look
from mimbench.data.decode import CorruptImage, decode
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


def test_grey_of_32_bits_has_no_known_range(tmp_path: Path) -> None:
    """Whatever its values are: a range that fits 8 or 16 bits may be chance."""
    file = tmp_path / "x.tif"
    for high in (1, 255, 65535, 70_000):
        Image.fromarray(np.full((4, 4), high, np.int32)).save(file)
        with pytest.raises(CorruptImage, match="32 bits, of unknown range"):
            decode(file)
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png").max() == 255


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
