"""DTM's pilot study: does aggregating CLIP's patch tokens make each token easier to classify?

Kim et al., Morphing Tokens Draw Strong Masked Image Models (ICLR 2025, arXiv 2401.00254): before any
pretraining, the teacher's patch tokens are merged by similarity, and the merged tokens classify better.
Here every patch gets the mean of its group, and each token is measured:

    zero-shot    share of patches whose nearest class caption, by cosine, is that of the image's class
    linear       share of patches that a linear layer, trained on patches, assigns to the image's class
    cosine       mean cosine similarity of patches that are neighbours in the grid

How the paper aggregates and counts could not be read; measuring each token is our reading. The merging is
that of DTM's code (naver-ai/dtm@322df2e) at its midpoint: half of the tokens in half of the rounds. As there,
the teacher gets images normalised with ImageNet's statistics. Zero-shot accuracy needs the text tower, which
only a CLIP that was trained here has; without it this number is missing from the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from torch import Tensor, nn

from downstream.estimate import encoder_flops, epoch_images
from mimbench.contract import Metric, TaskCard, TransferRecipe
from mimbench.device import device
from mimbench.recipe import cite, require_above, require_range
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder

PROMPTS = ("a {}", "a picture of a {}")


@dataclass(frozen=True, kw_only=True)
class TokenRecipe(TransferRecipe):
    """Fields of the aggregation and of training the linear layer."""

    matching: Literal["none", "bipartite"]
    num_merged: int  # tokens that merge in each round
    num_rounds: int
    epochs: float
    min_crop_scale: float
    crop_pct: float  # evaluation: the centre crop's side over the resized image's short side
    head_init_std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_merged", self.num_merged, 0)
        require_range("num_rounds", self.num_rounds, 1)
        require_above("epochs", self.epochs, 0)
        require_range("min_crop_scale", self.min_crop_scale, 0, 1)
        require_above("crop_pct", self.crop_pct, 0)
        require_range("head_init_std", self.head_init_std, 0)


BEIT = "BEiT's linear probe, whose layer and optimizer this is"


def recipes() -> Mapping[str, TokenRecipe]:
    """Scale to recipe."""
    paper = TokenRecipe.of(
        cite("DTM paper, pilot study", matching="bipartite"),
        cite("ours: DTM's n = 196 and K = 14, halved", num_merged=14, num_rounds=7),
        cite(BEIT, global_batch_size=1024, base_lr=4e-3, lr_rule="absolute", weight_decay=1e-4),
        cite(BEIT, betas=(0.9, 0.999), clip_grad=None, precision="fp16", head_init_std=0.01),
        cite(BEIT, img_size=224, min_crop_scale=0.08, crop_pct=0.875),
        cite("ours: a patch token each, 196 to an image", epochs=10.0),
        cite("a frozen teacher has neither", layer_decay=1.0, drop_path=0.0),
    )
    small = paper.vary(
        cite("ours: two CPU cores", num_merged=8, num_rounds=4, global_batch_size=32, precision="fp32"),
        cite("ours: two CPU cores", img_size=64, min_crop_scale=0.6, crop_pct=1.0),
    )
    smoke = small.vary(cite("ours: seconds", img_size=32, num_merged=4, num_rounds=2, epochs=1.0))
    return {"smoke": smoke, "toy": small, "small": small, "paper": paper}


def aggregate(x: Tensor, num_merged: int, num_rounds: int) -> Tensor:
    """Replace each of the tokens x `[B, N, C]` by the mean of its group, from rounds of bipartite matching.

    In each round every token at an even place finds the most similar token at an odd place, and the
    `num_merged` most similar pairs merge. The first token never merges (naver-ai/dtm@322df2e, bm/merge.py).
    """
    batch, num_tokens, dim = x.shape
    group = torch.arange(num_tokens, device=x.device).expand(batch, -1)
    mean = x
    for _ in range(num_rounds):
        merged = min(num_merged, (mean.shape[1] - 1) // 2)
        unit = F.normalize(mean, dim=-1)
        scores = unit[:, ::2] @ unit[:, 1::2].mT  # [B, a, b]
        scores[:, 0] = -torch.inf
        best, partner = scores.max(dim=-1)  # [B, a]
        merges = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(merged).indices, True)
        num_kept = scores.shape[1] - merged
        place = torch.empty(mean.shape[:2], dtype=torch.long, device=x.device)  # [B, t]
        place[:, ::2] = torch.where(merges, num_kept + partner, (~merges).cumsum(dim=1) - 1)
        place[:, 1::2] = num_kept + torch.arange(scores.shape[2], device=x.device)
        group = place.gather(1, group)
        index = group.unsqueeze(-1).expand(-1, -1, dim)
        total = x.new_zeros(batch, num_kept + scores.shape[2], dim).scatter_add(1, index, x)
        mean = total / torch.zeros_like(total).scatter_add(1, index, torch.ones_like(x))
    return mean.gather(1, group.unsqueeze(-1).expand_as(x))


def neighbour_cosine(x: Tensor) -> Tensor:
    """Mean cosine similarity of horizontal and vertical neighbours among tokens x `[B, N, C]`: `[B]`."""
    side = round(x.shape[1] ** 0.5)
    unit = F.normalize(x, dim=-1).unflatten(1, (side, side))  # [B, S, S, C]
    across = (unit[:, :, 1:] * unit[:, :, :-1]).sum(dim=-1)
    down = (unit[:, 1:] * unit[:, :-1]).sum(dim=-1)
    return torch.cat([across.flatten(1), down.flatten(1)], dim=1).mean(dim=1)


class TokenClassifier(BaseModel):
    """A frozen teacher, its aggregated patch tokens, a batch norm without weights and a linear layer.

    Args:
        teacher: images to all projected tokens `[B, 1+N, C]`, class token first.
        dim: C.
    """

    def __init__(self, teacher: nn.Module, dim: int, num_classes: int, recipe: TokenRecipe) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.recipe = recipe
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.head.weight, std=recipe.head_init_std)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> TokenClassifier:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens `[B, N, C]`, aggregated unless `matching` is `none`."""
        x = self.teacher(images)[:, 1:].float()
        if self.recipe.matching == "none":
            return x
        return aggregate(x, self.recipe.num_merged, self.recipe.num_rounds)

    def classify(self, tokens: Tensor) -> Tensor:
        """Logits of every token, `[B, N, K]`."""
        return self.head(self.norm(tokens.transpose(1, 2)).transpose(1, 2))

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        """Logits `[B, N, K]` of images `[B, 3, H, W]`; in mode `loss`, the loss over all tokens."""
        logits = self.classify(self.tokens(images))
        if mode != "loss" or labels is None:
            return logits
        return {"loss": F.cross_entropy(logits.float().mT, labels.unsqueeze(1).expand(-1, logits.shape[1]))}


def class_texts(run: RunFolder, classes: Sequence[str]) -> Tensor | None:
    """The text tower's unit vectors of the class names, `[K, C]`; None for a CLIP not trained here."""
    from safetensors.torch import load_file

    from mimbench import catalog
    from mimbench.data.image_folder import CaptionedImages, ImageFolder

    if run.spec.recipe.get("weights"):
        return None
    images = ImageFolder(run.data("captions"), "train", skip_corrupt=run.spec.skip_corrupt)
    tokenizer = CaptionedImages(images, augment=lambda image: image).tokenizer
    card = catalog.teacher(run.spec.name)
    recipe = type(card.recipes()["paper"]).from_values(run.spec.recipe)
    towers: Any = card.build(recipe, tokenizer=tokenizer)
    towers.load_state_dict(load_file(run.path / "teacher.safetensors"))
    towers.eval()
    texts = []
    for prompt in PROMPTS:
        sentences = [prompt.format(name.replace("-", " ").replace("_", " ")) for name in classes]
        tokens = torch.tensor([tokenizer.encode(sentence) for sentence in sentences])
        with torch.no_grad():
            texts.append(F.normalize(towers.encode_text(tokens), dim=-1))
    return F.normalize(torch.stack(texts).mean(dim=0), dim=-1)


def run(folder: RunFolder) -> dict[str, float]:
    """Train the linear layer on the labelled images' tokens; measure the validation images' tokens."""
    from downstream.transfer import fit_head, labelled_splits, seed_weights
    from mimbench.data.augment import eval_transform, finetune_transform
    from mimbench.data.image_folder import LabelledImages
    from mimbench.train.pretraining import load_teacher

    spec = folder.spec
    recipe = TokenRecipe.from_values(spec.recipe)
    train, val = labelled_splits(folder)
    teacher_run = folder.parents["encoder"]
    texts = class_texts(teacher_run, train.classes)
    seed_weights(spec.seed)
    dim = int(teacher_run.spec.recipe["output_dim"])
    model = TokenClassifier(load_teacher(folder, "encoder"), dim, len(train.classes), recipe)
    steps = max(round(recipe.epochs * len(train) / recipe.global_batch_size), 1)
    augment = finetune_transform(recipe.img_size, None, 0.0, min_crop_scale=recipe.min_crop_scale)
    fit_head(model, LabelledImages(train, augment), folder, recipe, steps=steps)
    images = LabelledImages(val, eval_transform(recipe.img_size, recipe.crop_pct))
    return measure(model, images, texts, num_workers=folder.options.num_workers)


@torch.no_grad()
def measure(
    model: TokenClassifier, dataset: Any, texts: Tensor | None, *, batch_size: int = 64, num_workers: int = 0
) -> dict[str, float]:
    """The task's metrics; every image counts once. Without texts there is no zero-shot accuracy."""
    from downstream.transfer import share_of

    target = device()
    model.to(target).eval()
    texts = texts.to(target) if texts is not None else None
    sums = torch.zeros(3, device=target)
    for images, labels in Loader(share_of(dataset), batch_size=batch_size, num_workers=num_workers):
        tokens, label = model.tokens(images.to(target)), labels.to(target).unsqueeze(1)  # [B, N, C], [B, 1]
        linear = model.classify(tokens).argmax(dim=-1) == label  # [B, N]
        sums[0] += neighbour_cosine(tokens).sum()
        sums[1] += linear.float().mean(dim=1).sum()
        if texts is not None:
            scores = F.normalize(tokens, dim=-1) @ texts.T  # [B, N, K]
            sums[2] += (scores.argmax(dim=-1) == label).float().mean(dim=1).sum()
    all_reduce(sums)
    cosine, linear_acc, zero_shot_acc = (sums / len(dataset)).tolist()
    metrics = {"zero_shot_acc": 100 * zero_shot_acc} if texts is not None else {}
    return metrics | {"linear_probe_acc": 100 * linear_acc, "patchwise_cosine_similarity": cosine}


TASK = TaskCard(
    name="token-aggregation",
    title="Aggregation of the teacher's tokens",
    protocol="frozen teacher, every patch token classified by itself",
    data="imagenet",
    metrics=(
        Metric(name="zero_shot_acc", title="zero-shot accuracy"),
        Metric(name="linear_probe_acc", title="linear accuracy"),
        Metric(name="patchwise_cosine_similarity", title="neighbour cosine", unit=""),
    ),
    recipes=recipes,
    run=run,
    flops=encoder_flops,  # the teacher's forward pass; the linear layer is next to nothing
    images=epoch_images,
    takes="teacher",
)
