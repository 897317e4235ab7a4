"""The CLIP teacher: tower, contrastive loss, and weights that come from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mimbench.data.captions import EOS, Tokenizer
from mimbench.errors import UserError
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from pretrain.clip_vit import ClipVisual, QuickGELU
from pretrain.teachers.clip import CLIP, METHOD, ClipRecipe, load, load_visual, read_weights, visual_tower

CAPTIONS = ["a red disc", "a striped blue cross on green ground", "two squares", "one dotted square"]
TOKENIZER = Tokenizer.build(CAPTIONS)


@pytest.fixture
def recipe() -> ClipRecipe:
    return METHOD.recipes()["smoke"]


@pytest.fixture
def model(recipe: ClipRecipe) -> CLIP:
    return CLIP(recipe, TOKENIZER)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.tensor([TOKENIZER.encode(caption) for caption in CAPTIONS])


def test_quick_gelu() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))


def test_tower_by_hand() -> None:
    tower = ClipVisual(img_size=16, patch_size=8, width=8, depth=2, num_heads=2, output_dim=6).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(3, 3, 16, 16)

    def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias

    patches = F.unfold(images, 8, stride=8).mT @ tower.conv1.weight.reshape(8, -1).T  # [B, 4, 8]
    x = torch.cat([tower.class_embedding.expand(3, 1, 8), patches], dim=1) + tower.positional_embedding
    x = norm(x, tower.ln_pre)
    for block in tower.transformer.resblocks:
        qkv = norm(x, block.ln_1) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = (q @ k.mT / 2).softmax(dim=-1) @ v
        x = x + block.attn.out_proj(mixed.transpose(1, 2).reshape(3, 5, 8))
        hidden = block.mlp.c_fc(norm(x, block.ln_2))
        x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    x = norm(x, tower.ln_post)
    torch.testing.assert_close(tower(images, project=False), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower(images), x @ tower.proj, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # PyTorch takes another path through its attention here
        torch.testing.assert_close(tower(images), x @ tower.proj, rtol=1e-4, atol=1e-4)


def test_paper_tower_has_the_shape_of_openais_vit_b16() -> None:
    with torch.device("meta"):
        tower = visual_tower(METHOD.recipes()["paper"])
    state = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    assert sum(math.prod(shape) for shape in state.values()) == 86_192_640
    assert state["conv1.weight"] == (768, 3, 16, 16) and "conv1.bias" not in state
    assert state["class_embedding"] == (768,) and state["positional_embedding"] == (197, 768)
    assert state["proj"] == (768, 512)
    block = {name.split(".", 3)[3] for name in state if name.startswith("transformer.resblocks.11.")}
    assert block == {
        f"{layer}.{kind}"
        for layer in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    } | {"attn.in_proj_weight", "attn.in_proj_bias"}


def test_loss_is_symmetric_cross_entropy(model: CLIP, tokens: torch.Tensor) -> None:
    images = torch.randn(4, 3, 32, 32)
    image, text = model.visual(images)[:, 0], model.encode_text(tokens)
    cosine = F.cosine_similarity(image[:, None], text[None], dim=2)
    log_p = sum((cosine / 0.07).log_softmax(dim=dim).diagonal().mean() for dim in (0, 1))
    found = model((images, tokens), 0.0)
    torch.testing.assert_close(found["loss"], -log_p / 2, rtol=1e-4, atol=1e-5)
    hits = (cosine.argmax(dim=1) == torch.arange(4)).float().mean()
    assert found["caption_acc"] == hits


def test_temperature_stops_at_a_hundredth(model: CLIP, tokens: torch.Tensor) -> None:
    images, losses = torch.randn(4, 3, 32, 32), []
    for scale in (90.0, 100.0, 1000.0):
        nn.init.constant_(model.logit_scale, math.log(scale))
        losses.append(model((images, tokens), 0.0)["loss"])
    torch.testing.assert_close(losses[1], losses[2], rtol=1e-5, atol=0)
    assert losses[0] != losses[1]


def test_text_feature_stands_at_the_end_and_sees_only_what_comes_before(
    model: CLIP, tokens: torch.Tensor
) -> None:
    feature = model.encode_text(tokens)
    end = (tokens == EOS).int().argmax(dim=1)
    padding = torch.arange(tokens.shape[1])[None] > end[:, None]
    assert padding.any()
    noise = torch.where(padding, 3, tokens)
    torch.testing.assert_close(model.encode_text(noise), feature, rtol=1e-5, atol=1e-6)
    first_word = tokens.clone()
    first_word[:, 0] = (tokens[:, 0] - 2) % (TOKENIZER.size - 3) + 3
    assert (model.encode_text(first_word) - feature).abs().max() > 1e-3


def test_it_learns_which_caption_belongs_to_which_image(model: CLIP, tokens: torch.Tensor) -> None:
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(20):
        scalars = model((images, tokens), 0.0)
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
    assert scalars["loss"] < 0.1 and scalars["caption_acc"] == 1


def test_weights_from_elsewhere_load_in_fp32_and_exactly(
    recipe: ClipRecipe, model: CLIP, tmp_path: Path
) -> None:
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    torch.save(state, tmp_path / "clip.pt")
    torch.save({"state_dict": state, "epoch": 32}, tmp_path / "open_clip.pt")
    torch.save({"model": {f"_orig_mod.module.{n}": w for n, w in state.items()}}, tmp_path / "wrapped.pt")
    for file in ("clip.safetensors", "clip.pt", "open_clip.pt", "wrapped.pt"):
        path = tmp_path / file
        tower = load_visual(read_weights(path), recipe, path)
        for name, tensor in tower.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, state[f"visual.{name}"].float()), name


def test_a_run_that_names_weights_loads_what_the_user_gave(
    recipe: ClipRecipe, model: CLIP, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    values = recipe.vary("test", weights="clip").values()
    spec = RunSpec("teacher", "clip", recipe.arch, values, {}, 0)
    folder = RunStore(tmp_path).create(spec, Inputs(weights={"clip": str(tmp_path / "mine.pt")}))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(folder)(images), model.visual(images))


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_of_another_shape_are_refused_by_name(
    damage: str, recipe: ClipRecipe, model: CLIP, tmp_path: Path
) -> None:
    state = dict(model.state_dict())
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    if damage == "missing":
        del state[name]
    else:
        state[name] = state[name][:, :-1]
    with pytest.raises(UserError, match=r"visual\.transformer\.resblocks\.1\.mlp\.c_fc\.weight.*\(128, 32\)"):
        load_visual(state, recipe, tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("visual.transformer.resblocks.4.ln_1.weight", torch.ones(32)),
        ("visual.attnpool.c_proj.weight", torch.ones(32)),
        ("visual.ln_post.bias", torch.full((32,), torch.inf)),
    ],
)
def test_a_tensor_without_place_or_sound_value_is_refused_by_name(
    name: str, tensor: torch.Tensor, recipe: ClipRecipe, model: CLIP, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--weights clip .*{name}"):
        load_visual({**model.state_dict(), name: tensor}, recipe, tmp_path / "x")
    text = {"transformer.resblocks.9.ln_1.weight": tensor, "input_resolution": torch.tensor(224)}
    load_visual({**model.state_dict(), **text}, recipe, tmp_path / "x")  # the text tower may be any


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("never"),))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
@pytest.mark.parametrize("kind", ["torchscript", "pickle", "garbage", "broken safetensors"])
def test_a_file_that_holds_code_or_garbage_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pt")
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    elif kind == "pickle":
        torch.save({"visual.proj": Evil()}, path)
    else:
        path.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="weights clip"):
        read_weights(path)
    assert not Path("never").exists()


def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, recipe: ClipRecipe) -> None:
    torch.save([torch.zeros(3)], tmp_path / "x.pt")
    with pytest.raises(UserError, match="weights clip"):
        load_visual(read_weights(tmp_path / "x.pt"), recipe, tmp_path / "x.pt")
