"""What a result's details say in words."""

from __future__ import annotations

from mimbench.store.remarks import of_data, remarks


def test_every_remark_is_a_sentence() -> None:
    details = {
        "steps": 3,
        "identified_by_size_and_time": ["ade20k"],
        "content_not_recorded": ["imagenet"],
        "converted_images": ["images with 16 bits a channel, scaled to 8: 2 (first: train/a/x.png)"],
        "converted": ["instances.json: 2 polygons"],
        "skipped_images": ["train/a/y.jpg", "train/a/z.jpg"],
        "key_before": "f" * 16,
    }
    found = remarks(details)
    assert len(found) == 6 and "ade20k: identified by sizes and times of files (--trust-stat)" in found
    assert "images left out because they do not decode: 2 (first: train/a/y.jpg)" in found
    assert "not recorded" in of_data(details)["imagenet"]


def test_what_another_version_wrote_is_no_error() -> None:
    assert remarks({}) == [] and remarks({"converted": 3, "content_not_recorded": None}) == []
