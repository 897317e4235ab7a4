"""Oddities of COCO's lists of images and categories, and of the annotation file as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.campaign.data_cases import Expect, of
from tests.faults.campaign.datasets import source
from tests.faults.campaign.mutate_coco import Document, annotation, edits, is_perfect, named


@edits
def category_unknown(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["category_id"] = draw.choice([0, 2, 999, -1])
    return Expect(f"category {each['category_id']}", refused=(named(each), str(each["category_id"])))


@edits
def image_unknown(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["image_id"] = draw.choice([0, 999, -1])
    return Expect(f"image {each['image_id']}", refused=(named(each), str(each["image_id"])))


@edits
def size_of_image_wrong(document: Document, draw: Random) -> Expect:
    image = draw.choice(document["images"])
    image[draw.choice(["width", "height"])] += draw.choice([-1, 1, 100])
    return Expect("another size of an image", refused=(image["file_name"],))


@edits
def size_of_image_odd(document: Document, draw: Random) -> Expect:
    index = draw.randrange(len(document["images"]))
    key = draw.choice(["width", "height"])
    if draw.random() < 0.3:
        del document["images"][index][key]
    else:
        document["images"][index][key] = draw.choice([0, -4, "64", 64.5, None, 0.0])
    return Expect("an odd size of an image", refused=(f"images[{index}]",))


@edits
def image_listed_twice(document: Document, draw: Random) -> Expect:
    image = draw.choice(document["images"])
    document["images"].append({**image, "id": 999})
    return Expect("an image twice", refused=(image["file_name"],))


@edits
def file_name_leads_out(document: Document, draw: Random) -> Expect:
    index = draw.randrange(len(document["images"]))
    document["images"][index]["file_name"] = draw.choice(
        ["../../x.jpg", "/etc/passwd", "a/../../x.jpg", "..", ""]
    )
    return Expect("a path that leads out", refused=(f"images[{index}]",))


@edits
def file_name_missing_on_disk(document: Document, draw: Random) -> Expect:
    image = draw.choice(document["images"])
    image["file_name"] = "none.jpg"
    return Expect("an image that is not there", refused=("none.jpg",))


@edits
def part_missing(document: Document, draw: Random) -> Expect:
    part = draw.choice(["images", "annotations", "categories"])
    if draw.random() < 0.5:
        del document[part]
    else:
        document[part] = draw.choice([{}, "x", None, 3])
    return Expect(f"no {part}", refused=(part,))


@edits
def part_empty(document: Document, draw: Random) -> Expect:
    for part in draw.choice([["annotations"], ["images", "annotations"], ["categories", "annotations"]]):
        document[part] = []
    return Expect("an empty part", refused=("It has no",))


@edits
def categories_in_another_order(document: Document, draw: Random) -> Expect:
    document["categories"].reverse()
    return Expect("categories of one split in another order", refused=("same categories",))


@edits
def unlabelled_image(document: Document, draw: Random) -> Expect:
    """Images without annotations are seen in evaluation alone."""
    image = draw.choice(document["images"])
    kept = [each for each in document["annotations"] if each["image_id"] != image["id"]]
    document["annotations"] = kept
    return Expect("an image without annotations", right=is_perfect, identity="other")


@edits
def more_fields(document: Document, draw: Random) -> str:
    document["info"] = {"year": 2017}
    annotation(document, draw)["attributes"] = {"occluded": True}
    return "fields of other tools"


def _bytes(name: str, change: Callable[[bytes, Random], bytes], *, refused: bool) -> None:
    def mutator(root: Path, draw: Random) -> Expect:
        file = source(root, draw.choice(["train", "val"]))
        file.write_bytes(change(file.read_bytes(), draw))
        if refused:
            return Expect(f"{file.name}: {name}", refused=(str(file),))
        return Expect(f"{file.name}: {name}", right=is_perfect, same_numbers=True)

    mutator.__name__ = name.replace(" ", "_")
    of("coco")(mutator)


_bytes("byte order mark", lambda text, draw: b"\xef\xbb\xbf" + text, refused=False)
_bytes("Windows line ends", lambda text, draw: text.replace(b", ", b",\r\n"), refused=False)
_bytes("blanks at the end", lambda text, draw: text + b" \n\n\t", refused=False)
_bytes("UTF 16", lambda text, draw: text.decode().encode("utf-16"), refused=True)
_bytes("Latin 1", lambda text, draw: text.replace(b'"bar"', b'"b\xe4r"'), refused=True)
_bytes("cut off", lambda text, draw: text[: draw.randrange(1, len(text) - 1)], refused=True)
_bytes("not there any more", lambda text, draw: b"", refused=True)
_bytes("a page of HTML", lambda text, draw: b"<!DOCTYPE html><html>404</html>", refused=True)
_bytes("deep", lambda text, draw: b"[" * 100_000, refused=True)
