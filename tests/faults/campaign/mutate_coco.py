"""Oddities of COCO's annotation files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.faults.campaign.data_cases import Expect, of
from tests.faults.campaign.datasets import Read, source

Document = dict[str, Any]
Edit = Callable[[Document, Random], "Expect | str"]


def edits(edit: Edit) -> Edit:
    """Register an edit of the annotations of one split. It says what must hold, or in words what it did: then
    the numbers of the sound file must come out."""

    def mutator(root: Path, draw: Random) -> Expect:
        split = draw.choice(["train", "val"])
        file = source(root, split)
        document = json.loads(file.read_text())
        found = edit(document, draw)
        file.write_text(json.dumps(document, indent=draw.choice([None, 1])))
        if isinstance(found, str):
            found = Expect(found, right=is_perfect, identity="other", same_numbers=True)
        if found.refused and edit.__name__ != "file_name_missing_on_disk":
            found.refused = (*found.refused, "instances_")
        found.done = f"{file.name}: {found.done}"
        return found

    mutator.__name__ = edit.__name__
    of("coco")(mutator)
    return edit


def is_perfect(found: Read) -> str:
    """Whether pycocotools gives the truth, scored against itself, an AP of 1."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for split, document in found.documents.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = copy.deepcopy(document)
            truth.createIndex()
            results = [
                {
                    "image_id": each["image_id"], "category_id": each["category_id"], "score": 0.9,
                    "segmentation": truth.annToRLE(each),
                }
                for each in document["annotations"] if not each["iscrowd"]
            ]  # fmt: skip
            scores = COCOeval(truth, truth.loadRes(results), "segm")
            scores.evaluate()
            scores.accumulate()
            scores.summarize()
        if scores.stats[0] < 1 - 1e-9:
            return f"the truth of {split} has an AP of {scores.stats[0]}"
        for each in document["annotations"]:
            size = float(mask.area(truth.annToRLE(each)))
            if not 0.5 * size <= each["area"] <= 2 * size + 8:
                return f"annotation {each['id']} of {split} has the area {each['area']}, its mask {size}"
    return ""


def annotation(document: Document, draw: Random) -> Document:
    return draw.choice(document["annotations"])


def named(entry: Document) -> str:
    return f"annotation {entry['id']}"


@edits
def area_missing(document: Document, draw: Random) -> str:
    chosen = [each for each in document["annotations"] if draw.random() < 0.7] or document["annotations"][:1]
    for each in chosen:
        del each["area"]
    return f"{len(chosen)} areas are missing"


@edits
def area_wrong_type(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["area"] = draw.choice(["12", None, [], float("nan"), float("inf")])
    return Expect(f"area {each['area']!r}", refused=(named(each),))


@edits
def crowd_missing(document: Document, draw: Random) -> str:
    for each in document["annotations"]:
        if draw.random() < 0.7:
            del each["iscrowd"]
    return "iscrowd is missing"


@edits
def crowd_odd(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["iscrowd"] = draw.choice([2, -1, "0", None, 0.5])
    return Expect(f"iscrowd {each['iscrowd']!r}", refused=(named(each),))


@edits
def ids_from_zero(document: Document, draw: Random) -> str:
    for number, each in enumerate(document["annotations"]):
        each["id"] = number
    return "ids from 0"


@edits
def ids_below_zero(document: Document, draw: Random) -> str:
    first = -draw.randint(1, 9)
    for number, each in enumerate(document["annotations"]):
        each["id"] = first + number
    return f"ids from {first}"


@edits
def ids_huge(document: Document, draw: Random) -> str:
    first = draw.choice([900100000000, 2**40])
    for number, each in enumerate(document["annotations"]):
        each["id"] = first + number
    return f"ids from {first}"


@edits
def ids_shuffled(document: Document, draw: Random) -> Expect:
    document["annotations"].reverse()
    return Expect("annotations in another order", right=is_perfect, identity="other")


@edits
def ids_twice(document: Document, draw: Random) -> Expect:
    first, second = draw.sample(document["annotations"], 2)
    second["id"] = first["id"]
    return Expect("an id twice", refused=(named(first),))


@edits
def image_ids_twice(document: Document, draw: Random) -> Expect:
    first, second = draw.sample(document["images"], 2)
    second["id"] = first["id"]
    return Expect("the id of an image twice", refused=(f"image {first['id']}",))


@edits
def category_ids_twice(document: Document, draw: Random) -> Expect:
    first, second = draw.sample(document["categories"], 2)
    second["id"] = first["id"]
    return Expect("the id of a category twice", refused=(f"category {first['id']}",))


@edits
def category_named_twice(document: Document, draw: Random) -> Expect:
    first, second = draw.sample(document["categories"], 2)
    second["name"] = first["name"]
    return Expect("the name of a category twice", refused=(first["name"],))


@edits
def id_is_text(document: Document, draw: Random) -> Expect:
    part = draw.choice(["images", "annotations", "categories"])
    index = draw.randrange(len(document[part]))
    key = draw.choice(["id", "image_id", "category_id"]) if part == "annotations" else "id"
    document[part][index][key] = draw.choice([str(document[part][index][key]), 1.5, None, [1], True])
    return Expect(f"{part}[{index}].{key} is no number", refused=(f"{part}[{index}]",))


@edits
def box_of_no_number(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["bbox"][draw.randrange(4)] = draw.choice(
        [float("nan"), float("inf"), -float("inf"), "1", None, True]
    )
    return Expect(f"bbox {each['bbox']}", refused=(named(each),))


@edits
def box_of_odd_length(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["bbox"] = draw.choice([[], each["bbox"][:3], [*each["bbox"], 1], {}, "box", None])
    return Expect(f"bbox {each['bbox']}", refused=(named(each),))


@edits
def box_of_no_size(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["bbox"][draw.choice([2, 3])] = draw.choice([0, -3])
    return left_out(document, each, f"bbox {each['bbox']}")


@edits
def box_outside(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["bbox"] = draw.choice([[-50, 3, 20, 20], [3, 500, 20, 20], [1e6, 1e6, 9, 9]])
    return left_out(document, each, f"bbox {each['bbox']}")


@edits
def box_beyond_the_edge(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    image = next(image for image in document["images"] if image["id"] == each["image_id"])
    x, y, w, h = each["bbox"] = [
        draw.choice([-7, 5]),
        draw.choice([-4.5, 6]),
        draw.choice([30, 900]),
        draw.choice([30, 1e5]),
    ]
    left, top = np.maximum([x, y], 0)
    right, bottom = np.minimum([x + w, y + h], [image["width"], image["height"]])
    return Expect(
        f"bbox {each['bbox']}",
        identity="other",
        right=_has_box(each["id"], [left, top, right - left, bottom - top]),
    )


def _has_box(number: int, box: list[float]) -> Callable[[Read], str]:
    def right(found: Read) -> str:
        boxes = [
            each["bbox"] for document in found.documents.values() for each in document["annotations"]
            if each["id"] == number
        ]  # fmt: skip
        close = [np.allclose(each, box, atol=1e-6) for each in boxes]
        return "" if any(close) else f"annotation {number} has the boxes {boxes}, none is {box}"

    return right


def left_out(document: Document, entry: Document, done: str) -> Expect:
    """An annotation that cannot be used: the others are all there, and nothing else."""
    wanted = sorted(each["id"] for each in document["annotations"] if each is not entry)

    def right(found: Read) -> str:
        sets = [sorted(each["id"] for each in known["annotations"]) for known in found.documents.values()]
        return "" if wanted in sets else f"annotations {sets}, not {wanted}"

    return Expect(done, right=right, identity="other")


@edits
def polygon_without_area(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["segmentation"] = draw.choice(
        [[[3, 3, 9, 9]], [[3, 3, 3, 3, 3, 3]], [[3, 3, 9, 9, 6, 6]], [[]], [[5, 5]]]
    )
    return left_out(document, each, f"polygon {each['segmentation']}")


@edits
def polygon_beside_one_without_area(document: Document, draw: Random) -> str:
    each = annotation(document, draw)
    each["segmentation"].insert(draw.randint(0, 1), draw.choice([[3, 3, 9, 9], [4, 4, 4, 4, 4, 4]]))
    return "a polygon of no area beside another"


@edits
def polygon_of_no_numbers(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    each["segmentation"][0][draw.randrange(8)] = draw.choice([float("nan"), "x", None, float("inf")])
    return Expect("a polygon of no numbers", refused=(named(each),))


@edits
def mask_missing(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    if draw.random() < 0.5:
        del each["segmentation"]
    else:
        each["segmentation"] = draw.choice([[], None, "x", 3])
    return Expect("no mask", refused=(named(each),))


def run_lengths_of(document: Document, each: Document, packed: bool) -> None:
    from pycocotools import mask

    image = next(image for image in document["images"] if image["id"] == each["image_id"])
    height, width = image["height"], image["width"]
    rle = mask.merge(mask.frPyObjects(each["segmentation"], height, width))
    if packed:
        each["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
        return
    flat = mask.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(np.int8)))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    each["segmentation"] = {"size": [height, width], "counts": [int(count) for count in counts]}


@edits
def run_lengths(document: Document, draw: Random) -> str:
    for each in document["annotations"]:
        if draw.random() < 0.8:
            run_lengths_of(document, each, draw.random() < 0.5)
    return "masks as run lengths"


@edits
def run_lengths_of_another_size(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    run_lengths_of(document, each, draw.random() < 0.5)
    each["segmentation"]["size"][draw.randint(0, 1)] += draw.choice([-1, 1, 30])
    return Expect("run lengths of another size", refused=(named(each),))


@edits
def run_lengths_damaged(document: Document, draw: Random) -> Expect:
    each = annotation(document, draw)
    packed = draw.random() < 0.5
    run_lengths_of(document, each, packed)
    counts = each["segmentation"]["counts"]
    if packed:
        cut = draw.randrange(len(counts))
        each["segmentation"]["counts"] = draw.choice([counts[:cut], counts + "zz", "", "\x00", "é" + counts])
    else:
        each["segmentation"]["counts"] = draw.choice([counts[:-1], [*counts, 5], [-1, *counts], ["1"], None])
    return Expect("damaged run lengths", refused=(named(each),))


@edits
def all_are_crowds_but_one(document: Document, draw: Random) -> Expect:
    for each in document["annotations"][1:]:
        run_lengths_of(document, each, packed=False)
        each["iscrowd"] = 1
    return Expect("crowds", identity="other")
