"""Every task end to end on the smoke data, and what holds for all of them."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.contract import TaskCard
from mimbench.data import coco
from mimbench.errors import UserError
from mimbench.recipe import SCALES
from mimbench.store.folder import RunFolder
from mimbench.train.loader import seed_everything

TASKS = ("classification", "segmentation", "detection")
MakeFolder = Callable[..., RunFolder]


def card(name: str) -> TaskCard:
    return importlib.import_module(f"downstream.{name}").TASK


@pytest.mark.parametrize("name", TASKS)
def test_recipes_cite_every_value(name: str) -> None:
    recipes = card(name).recipes()
    assert tuple(recipes) == SCALES
    for recipe in recipes.values():
        assert set(recipe.sources) == set(recipe.values())
        assert type(recipe).from_values(json.loads(json.dumps(recipe.values()))) == recipe


@pytest.mark.parametrize("name", TASKS)
def test_estimates(name: str) -> None:
    task = card(name)
    recipes = task.recipes()
    paper = task.flops(recipes["paper"].values(), "vit_base", 16)
    assert (
        1e11 < paper < 1e13
    )  # ViT-B's forward at 224 pixels is 35 GFLOP, three times that with the backward
    assert task.flops(recipes["toy"].values(), "vit_toy", 8) < paper / 50
    assert task.images(recipes["paper"].values(), 1000) > 0


@pytest.mark.parametrize("name", TASKS)
def test_smoke_run(name: str, task_folder: MakeFolder) -> None:
    task = card(name)
    folder = task_folder(name, task.data, task.recipes()["smoke"])
    metrics = task.run(folder)
    assert list(metrics) == [metric.name for metric in task.metrics]
    assert all(0.0 <= value <= 100.0 for value in metrics.values())
    report = folder.details["load_report"]
    assert "blocks.0.attn.qkv.weight" in report["loaded"]
    assert report["dropped"] == ["norm.weight", "norm.bias"]
    assert report["new"] == []
    assert not [path for path in folder.path.iterdir() if path.is_dir()]  # mmengine's log folders
    logged = folder.metrics()
    assert logged and all(np.isfinite(line["loss"]) for line in logged)
    assert task.run(folder) == metrics  # done already: loaded and evaluated again, not trained again
    assert folder.metrics() == logged


def _fixed_batch(name: str, root: Path, encoder: Path) -> tuple[Any, Any]:
    """A model and one batch, as `fit` would give it."""
    from mmengine.dataset import pseudo_collate

    from downstream.transfer import seed_weights

    module = importlib.import_module(f"downstream.{name}")
    recipe = module.TASK.recipes()["smoke"].vary("test", drop_path=0.0)
    seed_weights(0)
    if name == "classification":
        from downstream.backbone import remove_final_norm
        from mimbench.checkpoint.encoder import load_encoder
        from mimbench.data.augment import eval_transform
        from mimbench.data.image_folder import ImageFolder, LabelledImages

        vit, _ = load_encoder(encoder)
        remove_final_norm(vit)
        model = module.Classifier(vit, 12, recipe.vary("test", mixup=0.0, cutmix=0.0))
        dataset = LabelledImages(ImageFolder(root / "imagenet", "train"), eval_transform(32, 1.0))
        images, labels = zip(*(dataset[4 * i] for i in range(8)), strict=True)
        return model, [torch.stack(images), torch.tensor(labels)]
    dataset = module.build_dataset(
        root / module.TASK.data, "training" if name == "segmentation" else "train", recipe
    )
    model = module.build_model(encoder, recipe, len(dataset.metainfo["classes"]))
    seed_everything(0, 0, 0)
    return model, pseudo_collate([dataset[i] for i in range(4)])


@pytest.mark.parametrize("name", TASKS)
def test_loss_decreases_on_a_fixed_batch(name: str, smoke_data: Path, encoder_file: Path) -> None:
    from mmengine.optim import OptimWrapper

    model, batch = _fixed_batch(name, smoke_data, encoder_file)
    model.train()
    optim = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=3e-3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = [float(model.train_step(batch, optim)["loss"].detach()) for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    stuck = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert stuck == []  # every parameter is trained


def test_adapter_leaves_the_classifiers_logits_unchanged(encoder_file: Path) -> None:
    from downstream.backbone import ViTBackbone, remove_final_norm
    from downstream.classification import Classifier
    from mimbench.checkpoint.encoder import load_encoder

    vit, _ = load_encoder(encoder_file)
    remove_final_norm(vit)
    model = Classifier(vit, 12, card("classification").recipes()["smoke"].vary("t", head_init_std=0.5)).eval()
    images = torch.randn(2, 3, 32, 32)
    last = ViTBackbone(encoder_file).eval()(images)[-1]
    torch.testing.assert_close(model(images), model.head(model.fc_norm(last.mean((2, 3)))))


def test_the_classifier_may_end_at_an_earlier_block(encoder_file: Path, task_folder: MakeFolder) -> None:
    from downstream.backbone import ViTBackbone
    from downstream.classification import Classifier, keep_blocks
    from mimbench.checkpoint.encoder import load_encoder

    task = card("classification")
    recipe = task.recipes()["smoke"].vary("t", num_blocks=2, head_init_std=0.5)
    vit, _ = load_encoder(encoder_file)
    depth, images = len(vit.blocks), torch.randn(2, 3, 32, 32)
    second = ViTBackbone(encoder_file, taps=[1]).eval()(images)[0]
    gone = keep_blocks(vit, 2)
    assert {name.split(".")[1] for name in gone} == {str(block) for block in range(2, depth)}
    model = Classifier(vit, 12, recipe).eval()
    torch.testing.assert_close(model(images), model.head(model.fc_norm(second.mean((2, 3)))))

    folder = task_folder("classification", "imagenet", recipe)
    task.run(folder)
    assert set(gone) <= set(folder.details["load_report"]["dropped"])
    values = recipe.values()
    assert task.flops(values, "vit_smoke", 8) < task.flops(values | {"num_blocks": 0}, "vit_smoke", 8)
    with pytest.raises(UserError, match=f"has {depth} blocks"):
        task.flops(values | {"num_blocks": depth + 1}, "vit_smoke", 8)


def test_classifier_head_starts_small_and_only_labelled_images_are_used(task_folder: MakeFolder) -> None:
    task = card("classification")
    recipe = task.recipes()["smoke"]
    folder = task_folder("classification", "imagenet", recipe)
    task.run(folder)
    listed = (folder.data("imagenet") / "train_labelled.txt").read_text().split()
    assert folder.details["labelled_images"] == len(listed) < 48
    assert folder.details["steps"] == round(recipe.epochs * len(listed) / recipe.global_batch_size)


def test_mixup_mixes_in_the_loss_only_and_is_seeded(encoder_file: Path) -> None:
    from downstream.classification import Classifier
    from mimbench.checkpoint.encoder import load_encoder

    vit, _ = load_encoder(encoder_file)
    recipe = card("classification").recipes()["smoke"].vary("t", mixup=0.8, cutmix=1.0, head_init_std=0.5)
    model = Classifier(vit, 12, recipe).eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    before = images.clone()
    losses = []
    for step in (0, 1, 0):
        seed_everything(0, step, 1)
        losses.append(float(model(images, labels, mode="loss")["loss"]))
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(images, before)


def test_accuracy_counts_every_image_once() -> None:
    from downstream.classification import accuracy

    logits = torch.eye(7)[torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])] + 0.01 * torch.arange(7).flip(0)
    labels = torch.tensor(
        [0, 1, 2, 4, 6, 6, 6, 0]
    )  # three are wrong; of those, only the 4 is among the five best
    images = list(zip(logits, labels, strict=True))
    found = accuracy(torch.nn.Identity(), images, batch_size=3)
    assert found == pytest.approx({"top1": 62.5, "top5": 75.0})


def test_wrong_shape_of_encoder_stops_every_task(task_folder: MakeFolder) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    for name in TASKS:
        task = card(name)
        folder = task_folder(name, task.data, task.recipes()["smoke"])
        path = folder.parents["encoder"].encoder_path
        with safe_open(path, framework="pt") as file:
            header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        save_file({**state, "cls_token": torch.zeros(1, 1, 48)}, path, metadata=header)
        with pytest.raises(UserError, match=r"cls_token.*\(1, 1, 48\).*\(1, 1, 32\)"):
            task.run(folder)


# -- segmentation --------------------------------------------------------------------------------------------


def test_label_zero_is_ignored_and_the_others_move_down(smoke_data: Path) -> None:
    from downstream.segmentation import IGNORED, build_dataset

    dataset = build_dataset(smoke_data / "ade20k", "validation", card("segmentation").recipes()["smoke"])
    item = dataset[0]
    raw = np.array(Image.open(dataset.get_data_info(0)["seg_map_path"])).astype(int)
    found = item["data_samples"].gt_sem_seg.data.squeeze().numpy()
    assert np.array_equal(found, np.where(raw == 0, IGNORED, raw - 1))


def test_a_label_beyond_the_classes_stops_the_run(smoke_data: Path, tmp_path: Path) -> None:
    from downstream.segmentation import build_dataset

    root = tmp_path / "ade20k"
    shutil.copytree(smoke_data / "ade20k", root)
    path = next((root / "annotations" / "training").glob("*.png"))
    num_classes = len((root / "classes.txt").read_text().splitlines())
    for label, fails in ((num_classes, False), (num_classes + 1, True)):
        labels = np.array(Image.open(path))
        labels[0, 0] = label
        Image.fromarray(labels).save(path)
        dataset = build_dataset(root, "training", card("segmentation").recipes()["smoke"])
        index = next(i for i in range(len(dataset)) if dataset.get_data_info(i)["seg_map_path"] == str(path))
        if fails:
            with pytest.raises(
                UserError, match=f"labels are 0 .other. to {num_classes}.*data check"
            ) as caught:
                dataset[index]
            assert (caught.value.field, caught.value.value) == (str(path), label)
        else:
            dataset[index]


def test_classes_default_to_ade20ks_150(tmp_path: Path) -> None:
    from downstream.segmentation import class_names

    assert len(class_names(tmp_path)) == 150
    (tmp_path / "classes.txt").write_text("wall\nsky\nwall\n")
    with pytest.raises(UserError, match="name each once"):
        class_names(tmp_path)


def test_iou_by_hand(tmp_path: Path) -> None:
    """What mmsegmentation's IoUMetric calls mIoU, mAcc and aAcc, on 2 x 2 pixels."""
    from downstream.openmmlab import import_quietly

    import_quietly("mmseg.evaluation")
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(ignore_index=255, iou_metrics=["mIoU"], prefix="ade20k")
    metric.dataset_meta = {"classes": ("a", "b")}
    predicted, truth = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [1, 255]])
    metric.process({}, [{"pred_sem_seg": {"data": predicted}, "gt_sem_seg": {"data": truth}}])
    values = metric.evaluate(size=1)  # a: 1 / 2, b: 1 / 2; accuracy a 1 / 1, b 1 / 2; 2 of 3 pixels
    assert values == {"ade20k/aAcc": 66.67, "ade20k/mIoU": 50.0, "ade20k/mAcc": 75.0}


# -- detection -----------------------------------------------------------------------------------------------


def _renumbered(root: Path, target: Path, ids: Callable[[int], int]) -> Path:
    """A copy of a COCO folder with other category ids."""
    shutil.copytree(root, target)
    for path in (target / "annotations").glob("instances_*.json"):
        values = json.loads(path.read_text())
        for category in values["categories"]:
            category["id"] = ids(category["id"])
        for annotation in values["annotations"]:
            annotation["category_id"] = ids(annotation["category_id"])
        path.write_text(json.dumps(values))
    return target


def test_category_ids_need_not_be_contiguous(smoke_data: Path, tmp_path: Path) -> None:
    from downstream.detection import build_dataset

    recipe = card("detection").recipes()["smoke"]
    plain = build_dataset(smoke_data / "coco", "train", recipe)
    root = _renumbered(smoke_data / "coco", tmp_path / "coco", lambda i: 7 * i + 3)
    gaps = build_dataset(root, "train", recipe)
    assert gaps.cat_ids == [7 * i + 3 for i in plain.cat_ids]
    assert gaps.metainfo["classes"] == plain.metainfo["classes"]
    for i in range(len(plain)):
        labels = [[x["bbox_label"] for x in d.get_data_info(i)["instances"]] for d in (plain, gaps)]
        assert labels[0] == labels[1] and max(labels[0]) < 12


class Oracle(torch.nn.Module):
    """Predicts the ground truth of a dataset."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.truth = {info["img_id"]: info for info in map(dataset.get_data_info, range(len(dataset)))}

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        from mmengine.structures import InstanceData
        from pycocotools import mask as rle

        for sample in data["data_samples"]:
            instances = self.truth[sample.img_id]["instances"]
            height, width = sample.ori_shape
            masks = [x["mask"] for x in instances]
            masks = [
                rle.merge(rle.frPyObjects(m, height, width)) if isinstance(m, list) else m for m in masks
            ]
            masks = [rle.frPyObjects(m, height, width) if isinstance(m["counts"], list) else m for m in masks]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([x["bbox"] for x in instances], dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor([x["bbox_label"] for x in instances], dtype=torch.long),
                scores=torch.ones(len(instances)),
                masks=torch.from_numpy(np.array([rle.decode(m) for m in masks], dtype=bool)),
            )
        return data["data_samples"]


def test_the_ground_truth_scores_100(smoke_data: Path, tmp_path: Path) -> None:
    from downstream.detection import build_dataset, coco_ap

    root = _renumbered(smoke_data / "coco", tmp_path / "coco", lambda i: 100 - 5 * i)
    dataset = build_dataset(root, "val", card("detection").recipes()["smoke"])
    scores = coco_ap(Oracle(dataset), dataset, batch_size=2, num_workers=0)
    assert scores == pytest.approx(dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 100.0))


def test_splits_with_other_categories_are_refused(smoke_data: Path, tmp_path: Path) -> None:
    root = _renumbered(smoke_data / "coco", tmp_path / "coco", lambda i: i)
    path = root / "annotations" / "instances_val2017.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "categories": values["categories"][:-1]}))
    with pytest.raises(UserError, match="same categories"):
        coco.both(root)


# -- corrupt images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "split"),
    [
        ("classification", "imagenet", "val/checked-cross"),
        ("segmentation", "ade20k", "images/validation"),
        ("detection", "coco", "val2017"),
    ],
)
def test_a_corrupt_image_is_named_or_left_out(
    name: str, role: str, split: str, task_folder: MakeFolder, smoke_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / role
    shutil.copytree(smoke_data / role, root)
    image = sorted((root / split).glob("*.jpg"))[0]
    image.write_bytes(b"no image")
    task = card(name)
    with pytest.raises(UserError, match=image.name):
        task.run(task_folder(name, role, task.recipes()["smoke"], root))
    folder = task_folder(name, role, task.recipes()["smoke"], root, skip_corrupt=True)
    task.run(folder)
    assert [Path(path).name for path in folder.details["skipped_images"]] == [image.name]


def test_boxes_are_cut_at_the_edge_of_an_image_that_is_no_square(
    smoke_data: Path, tmp_path: Path, encoder_file: Path
) -> None:
    """The network sees a padded square; a box in the padding would lie outside the image."""
    from mmengine.dataset import pseudo_collate

    from downstream.detection import build_dataset, build_model

    root = tmp_path / "coco"
    shutil.copytree(smoke_data / "coco", root)
    image = next((root / "val2017").iterdir())
    Image.open(image).crop((0, 0, 64, 24)).save(image)
    annotations = root / "annotations" / "instances_val2017.json"
    document = json.loads(annotations.read_text())
    cropped = next(each for each in document["images"] if each["file_name"] == image.name)
    cropped["height"] = 24
    for entry in document["annotations"]:
        if entry["image_id"] == cropped["id"]:
            entry |= {"bbox": [4, 4, 12, 12], "segmentation": [[4, 4, 16, 4, 16, 16, 4, 16]]}
    annotations.write_text(json.dumps(document))
    recipe = card("detection").recipes()["smoke"]
    dataset = build_dataset(root, "val", recipe)
    item = next(item for item in dataset if item["data_samples"].img_path == str(image))
    model = build_model(encoder_file, recipe, 12).eval()
    batch = model.data_preprocessor(pseudo_collate([item]), False)
    assert batch["inputs"].shape[-2:] == (64, 64) and batch["data_samples"][0].img_shape == (24, 64)
    with torch.no_grad():
        found = model.test_step(pseudo_collate([item]))[0].pred_instances
    assert len(found) > 0 and (found.bboxes[:, 3] <= 24).all() and found.masks.shape[1:] == (24, 64)


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_strides_are_exact_for_every_patch_size(tmp_path: Path, patch: int) -> None:
    """Anchors of every level, and the regions that the heads read, lie where the pyramid's cells lie."""
    from downstream.detection import build_model
    from mimbench.arch import ViTConfig
    from mimbench.checkpoint.encoder import save_encoder
    from mimbench.vit import ViT

    config = ViTConfig.named("vit_smoke", img_size=4 * patch, patch_size=patch)
    save_encoder(ViT(config), tmp_path / "e.safetensors", method="mae")
    recipe = card("detection").recipes()["smoke"].vary("test", img_size=4 * patch)
    model = build_model(tmp_path / "e.safetensors", recipe, 3).eval()
    side = 4 * patch
    levels = model.neck(model.backbone(torch.zeros(1, 3, side, side)))
    sizes = [level.shape[-1] for level in levels]
    anchors = model.rpn_head.prior_generator.grid_priors([level.shape[-2:] for level in levels], device="cpu")
    for cells, boxes in zip(sizes, anchors, strict=True):
        centres = ((boxes[:, 0] + boxes[:, 2]) / 2).round(decimals=2).unique()
        assert len(centres) == cells and centres.max() == pytest.approx(side - side / cells)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        assert [round(side / stride) for stride in extractor.featmap_strides] == sizes[:4]
