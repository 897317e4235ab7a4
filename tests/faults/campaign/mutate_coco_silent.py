"""Oddities of COCO's annotations that mmdetection or pycocotools leaves out, or scores, without a word."""

from __future__ import annotations

from random import Random

import numpy as np

from tests.faults.campaign.data_cases import Expect
from tests.faults.campaign.datasets import Read
from tests.faults.campaign.mutate_coco import Document, annotation, edits, left_out, named, run_lengths_of

HUGE = 10**400


@edits
def area_that_cannot_be(document: Document, draw: Random) -> str:
    """Their masks are boxes in whole pixels: the computed area is the stated one."""
    value = draw.choice([0, -1, -0.5, 1e12, 10**6])
    for each in document["annotations"]:
        if draw.random() < 0.7:
            each["area"] = value
    return f"areas of {value}"


@edits
def ignored_as_crowds(document: Document, draw: Random) -> Expect:
    """As the flags of a crowd, in mmdetection's instances and COCOeval's."""
    chosen = draw.sample(document["annotations"], draw.randint(1, len(document["annotations"]) - 1))
    for each in chosen:
        each["ignore"] = draw.choice([1, True])
    ids = {each["id"] for each in chosen}
    known = sorted(each["file_name"] for each in document["images"])

    def right(found: Read) -> str:
        for read in found.documents.values():
            if sorted(each["file_name"] for each in read["images"]) == known:
                crowds = {each["id"] for each in read["annotations"] if each["iscrowd"]}
                hidden = {each["id"] for each in read["annotations"] if each.get("ignore")}
                return "" if crowds == ids and not hidden else f"crowds {crowds}, hidden {hidden}, not {ids}"
        return "no split has these images"

    return Expect(f"{len(ids)} with ignore", right=right, identity="other")


@edits
def flag_odd(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    name = draw.choice(["ignore", "iscrowd"])
    each[name] = draw.choice([2, -1, "1", 0.5, None])
    return Expect(f"{name} {each[name]!r}", refused=(named(each), name))


@edits
def nothing_to_score(document: Document, draw: Random) -> Expect:
    """AP would be -100, after the training."""
    how = draw.choice(["iscrowd", "ignore", "either"])
    for each in document["annotations"]:
        each[draw.choice(["iscrowd", "ignore"]) if how == "either" else how] = 1
    return Expect(f"all annotations have {how}", refused=("crowds", "iscrowd 0"))


@edits
def no_mask_has_a_pixel(document: Document, draw: Random) -> Expect:
    for each in document["annotations"]:
        each["segmentation"] = _nothing(document, each, draw)
    return Expect("masks without a pixel", refused=("no annotation that can be used", "no pixel"))


@edits
def mask_without_a_pixel(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["segmentation"] = _nothing(document, each, draw)
    if draw.random() < 0.3:
        del each["area"]
    return left_out(document, each, f"mask {each['segmentation']}")


def _nothing(document: Document, entry: Document, draw: Random) -> object:
    """A mask that pycocotools decodes to zeros."""
    from pycocotools import mask

    image = next(image for image in document["images"] if image["id"] == entry["image_id"])
    height, width = image["height"], image["width"]
    empty = mask.encode(np.zeros((height, width), np.uint8, order="F"))
    x, y = draw.randint(2, 30), draw.randint(2, 30)
    masks = [
        {"size": [height, width], "counts": [height * width]},
        {"size": [height, width], "counts": empty["counts"].decode()},
        [[x + 1000, y, x + 1100, y, x + 1100, y + 9, x + 1000, y + 9]],
        [[-x - 20, y, -x, y, -x, y + 9, -x - 20, y + 9]],
        [[value for step in range(draw.randint(5, 9)) for value in (x + step, y + step)]],
        [[x + 0.1, y + 0.1, x + 0.3, y + 0.1, x + 0.3, y + 0.3, x + 0.2, y + 0.3, x + 0.1, y + 0.2]],
    ]
    chosen = draw.choice(masks)
    drawn = mask.frPyObjects(chosen, height, width) if isinstance(chosen, list) else [empty]
    assert not mask.area(mask.merge(drawn))
    return chosen


@edits
def image_under_another_spelling(document: Document, draw: Random) -> Expect:
    image, other = draw.sample(document["images"], 2)
    other["file_name"] = draw.choice(["./", ".//", "././"]) + image["file_name"]
    other.update(width=image["width"], height=image["height"])
    return Expect(f"an image twice, as {other['file_name']}", refused=(image["file_name"],))


@edits
def numbers_of_400_digits(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    what = draw.choice(["bbox", "area", "segmentation", "image"])
    if what == "bbox":
        each["bbox"][draw.randrange(4)] = draw.choice([HUGE, -HUGE])
    elif what == "area":
        each["area"] = HUGE
    elif what == "segmentation":
        each["segmentation"][0][draw.randrange(8)] = HUGE
    else:
        index = draw.randrange(len(document["images"]))
        document["images"][index][draw.choice(["width", "height", "id"])] = HUGE
        return Expect("a number of 400 digits in an image", refused=(f"images[{index}]",))
    return Expect(f"a number of 400 digits in {what}", refused=(named(each), what))


@edits
def ids_of_400_digits(document: Document, draw: Random) -> str:
    for each in document["annotations"]:
        each["id"] += HUGE
    return "ids of 400 digits"


@edits
def numbers_as_pandas_writes_them(document: Document, draw: Random) -> str:
    """A column with one missing value becomes floating-point numbers."""
    parts = draw.sample(["images", "annotations"], draw.randint(1, 2))
    for part in parts:
        names = [name for name in document[part][0] if type(document[part][0][name]) is int]
        for name in draw.sample(names, draw.randint(1, len(names))):
            for each in document[part]:
                each[name] = float(each[name])
    if "annotations" not in parts:
        for each in document["annotations"]:
            run_lengths_of(document, each, packed=False)
            each["segmentation"]["size"] = [float(side) for side in each["segmentation"]["size"]]
    return f"floating-point numbers in {parts}"
