"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021).

At paper scale OpenAI's ViT-B/16 is loaded from the file that the user names (`--weights clip=PATH`). At
smaller scales a small CLIP is trained here on captioned images: image tower, text tower and the symmetric
contrastive loss of section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import size_of, transformer_flops
from mimbench.checkpoint.networks import Rules
from mimbench.checkpoint.reader import read
from mimbench.contract import MethodCard
from mimbench.data.captions import EOS
from mimbench.recipe import PretrainRecipe, cite
from pretrain.clip_vit import ClipVisual, Transformer
from pretrain.weights import load_into, recorded, trained

if TYPE_CHECKING:
    from mimbench.data.captions import Tokenizer
    from mimbench.store.folder import RunFolder


class CLIP(nn.Module):
    """Image and text towers, trained to match the captions and images of a batch."""

    def __init__(self, recipe: ClipRecipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.visual = visual_tower(recipe)
        width = recipe.text_dim
        self.token_embedding = nn.Embedding(tokenizer.size, width)
        self.positional_embedding = nn.Parameter(torch.randn(tokenizer.length, width) * 0.01)
        self.transformer = Transformer(width, recipe.text_depth, max(width // 32, 1))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, recipe.output_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def encoder(self) -> nn.Module:
        return self.visual

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Captions `[B, T]` to `[B, output_dim]`: the feature at the end-of-text token, causal attention."""
        length = tokens.shape[1]
        causal = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding, causal))
        end = (tokens == EOS).int().argmax(dim=1)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    def forward(self, batch: tuple[Tensor, Tensor], step_fraction: float) -> dict[str, Tensor]:
        images, tokens = batch
        image = F.normalize(self.visual(images)[:, 0], dim=-1)  # [B, output_dim]
        text = F.normalize(self.encode_text(tokens), dim=-1)
        logits = self.logit_scale.exp().clamp(max=100) * image @ text.T  # [B, B]
        labels = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return {"loss": loss, "caption_acc": (logits.argmax(dim=1) == labels).float().mean()}


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(PretrainRecipe):
    output_dim: int  # of the shared image-text space
    text_dim: int
    text_depth: int
    weights: str  # the name under which the user gives pretrained weights; "" = trained here

    def step_flops(self) -> float:
        text = transformer_flops(self.text_dim, self.text_depth, 24)
        return 3 * (self.encoder_flops() + text)


def visual_tower(recipe: ClipRecipe) -> ClipVisual:
    """The recipe's image tower, untrained."""
    size = size_of(recipe.arch)
    return ClipVisual(
        img_size=recipe.img_size,
        patch_size=recipe.patch_size,
        width=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        output_dim=recipe.output_dim,
    )


def beside_visual(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a CLIP model is none of its image tower's: the text tower and the temperature."""
    del tensor
    return not name.startswith("visual.")


VISUAL = Rules("image tower", "visual.conv1.weight", droppable=beside_visual)


def load_visual(state: Mapping[str, Tensor], recipe: ClipRecipe, path: Path) -> ClipVisual:
    """The image tower with the `visual.*` weights of a CLIP state dict, in fp32.

    Its number of heads cannot be seen in the weights.
    """
    wanted = f"For {recipe.arch} give OpenAI's CLIP ViT-B/16."
    field = f"--weights {recipe.weights or 'clip'} ({path})"
    return load_into(visual_tower(recipe), state, VISUAL, field, wanted, their_name="visual.{}".format)


def read_weights(path: Path, name: str = "clip") -> Mapping[str, Tensor]:
    """The tensors of a CLIP state dict. OpenAI's TorchScript archive is refused: loading it runs its code.

    Raises:
        UserError: the file only loads by running the code inside it.
    """
    return read(path, f"--weights {name}")


def load(folder: RunFolder) -> nn.Module:
    """The image tower of a CLIP run: OpenAI's weights if the recipe names them, else trained here."""
    recipe = ClipRecipe.from_values(folder.spec.recipe)
    if recipe.weights:
        path = folder.weights[recipe.weights]
        return recorded(load_visual(read_weights(path, recipe.weights), recipe, path), folder)
    return load_visual(trained(folder), recipe, folder.path)


def recipes() -> Mapping[str, ClipRecipe]:
    code = "DTM code, vqkd_teacher/clip@322df2e: OpenAI's ViT-B/16 for every student"
    loaded = "loaded, not trained"
    paper = ClipRecipe.of(
        cite(code, arch="vit_base", img_size=224, patch_size=16, weights="clip"),
        cite(code, output_dim=512, text_dim=512, text_depth=12),
        cite(loaded, epochs=0.0, warmup_epochs=0.0, global_batch_size=1, precision="fp32"),
        cite(loaded, base_lr=0.0, lr_rule="absolute", min_lr=0.0, betas=(0.9, 0.98), weight_decay=0.2),
        cite(loaded, clip_grad=None, drop_path=0.0, min_crop_scale=0.9, color_jitter=0.0),
    )
    ours = "ours: two CPU cores"
    toy = paper.vary(
        cite(ours, arch="vit_toy", img_size=64, patch_size=8, weights=""),
        cite(ours, output_dim=64, text_dim=64, text_depth=2),
        cite(ours, epochs=5.0, warmup_epochs=1.0, global_batch_size=32, base_lr=1e-3, min_crop_scale=0.6),
    )
    smoke = toy.at_smoke(warmup_epochs=1.0)
    return {"paper": paper, "small": toy, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="clip",
    title="CLIP",
    paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
    code="openai/CLIP",
    provenance="official",
    recipes=recipes,
    build=CLIP,
    stage="teacher",
    data="captions",
    inputs="image+caption",
    load=load,
)
