"""Which network of a checkpoint is taken, and that every tensor of it has a place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.checkpoint import foreign
from mimbench.checkpoint.reader import Checkpoint
from mimbench.errors import UserError
from mimbench.vit import ViT, relative_position_index

SIZE = ViTConfig(32, 8, 16, 2, 2)
PLACE = Path("x.pth")


def state_of(fill: float = 0.1, **variant: object) -> dict[str, Tensor]:
    """A ViT's tensors; `fill` is the class token's value, by which a test knows it again."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(32, 8, 16, 2, 2, **variant))  # type: ignore[arg-type]
    for name, parameter in vit.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.constant_(vit.cls_token, fill)
    return vit.state_dict()


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def taken(state: dict[str, Tensor], export: str | None = None) -> float:
    """The class token's value in the network that is loaded."""
    vit, _ = foreign.convert(state, SIZE, PLACE, export=export)  # type: ignore[arg-type]
    return round(vit.cls_token.flatten()[0].item(), 3)


# -- wrappers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.",
        "model.",
        "module.",
        "model_state.",
        "model.module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "state_dict.model.",
        "state_dict.model._orig_mod.encoder.",
        "module.backbone.",
        "visual_encoder.",
        "network.trunk.",
        "_fsdp_wrapped_module.",
    ],
)
def test_wrappers_load_and_are_reported(prefix: str) -> None:
    state = state_of()
    vit, report = foreign.convert(under(prefix, state), SIZE, PLACE)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())
    wanted = prefix.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "")
    assert report.prefix == wanted and report.network == "" and report.dropped == []


def test_wrappers_between_the_parts_of_a_name_load() -> None:
    state = state_of()
    names = {
        name: name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod.") for name in state
    }
    vit, _ = foreign.convert({names[name]: tensor for name, tensor in state.items()}, SIZE, PLACE)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())


def test_a_file_of_other_names_is_shown_with_its_names() -> None:
    state = {"vit.embeddings.cls_token": torch.zeros(1), "vit.encoder.layer.0.bias": torch.zeros(1)}
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight.*any prefix.*vit\.embeddings\.cls_token"):
        foreign.convert(state, SIZE, PLACE)


@pytest.mark.parametrize("name", ["pos_embed", "register_tokens", "norm.weight", "blocks.2.norm1.bias"])
def test_a_part_of_the_encoder_outside_its_prefix_is_refused(name: str) -> None:
    state = under("encoder.", state_of()) | {name: torch.zeros(3)}
    with pytest.raises(UserError, match=f"{name}.*Outside the prefix 'encoder.'"):
        foreign.convert(state, SIZE, PLACE)


def test_the_message_names_the_prefix() -> None:
    state = under("my.net.", state_of())
    del state["my.net.norm.bias"]
    with pytest.raises(UserError, match=r"prefix 'my\.net\.': 'norm\.bias'.*lacks it"):
        foreign.convert(state, SIZE, PLACE)


# -- student and teacher -----------------------------------------------------------------------------------

PAIRS = {
    "DINO": ("student.module.backbone.", "teacher.backbone."),
    "flat": ("model.student.", "model.teacher."),
    "EMA": ("model.", "model_ema."),
    "timm": ("state_dict.", "state_dict_ema."),
    "hyphen": ("model.", "model-ema."),
    "camel case": ("studentModel.", "teacherModel."),
    "beside": ("", "teacher."),
    "MoCo v3": ("module.base_encoder.", "module.momentum_encoder."),
    "ours": ("student.encoder.", "teacher.encoder."),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_student_or_teacher_is_what_the_recipe_says(pair: tuple[str, str]) -> None:
    student, teacher = (under(prefix, state_of(i + 1.0)) for i, prefix in enumerate(pair))
    for both in (student | teacher, teacher | student):  # the order in the file does not matter
        assert taken(both, "student") == 1
        assert taken(both, "teacher") == 2
    _, report = foreign.convert(student | teacher, SIZE, PLACE, export="teacher")
    assert (report.prefix, report.network) == (pair[1], "teacher")
    assert len(report.dropped) == len(student)


@pytest.mark.parametrize("pair", ["DINO", "flat", "ours"])
def test_a_recipe_that_does_not_say_takes_neither(pair: str) -> None:
    student, teacher = (under(prefix, state_of()) for prefix in PAIRS[pair])
    with pytest.raises(UserError, match="student.*teacher.*does not say which of student and teacher"):
        taken(student | teacher)
    assert taken(student) == taken(teacher) == 0.1  # one alone is meant


@pytest.mark.parametrize("pair", ["EMA", "timm", "beside"])
def test_a_recipe_that_does_not_say_takes_the_model_not_its_average(pair: str) -> None:
    student, teacher = (under(prefix, state_of(i + 1.0)) for i, prefix in enumerate(PAIRS[pair]))
    assert taken(teacher | student) == 1


@pytest.mark.parametrize(("export", "prefix"), [("student", "teacher."), ("teacher", "student.")])
def test_the_other_one_alone_is_refused(export: str, prefix: str) -> None:
    with pytest.raises(UserError, match=f"{prefix[:-1]}.*hands over the {export}"):
        taken(under(prefix, state_of()), export)
    assert taken(under("backbone.", state_of()), export) == 0.1  # a published backbone


def test_two_encoders_of_no_role_are_refused() -> None:
    with pytest.raises(UserError, match=r"a, b.*several encoders"):
        taken(under("a.", state_of()) | under("b.", state_of()))
    with pytest.raises(UserError, match="same tensor"):
        taken(state_of() | under("_orig_mod.", state_of()))


# -- places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "register_tokens",
        "storage_tokens",
        "reg_token",
        "dist_token",
        "rope_embed.periods",
        "rope.freqs",
        "norm_pre.weight",
        "cls_norm.weight",
        "patch_embed.norm.weight",
        "pos_embed_window",
        "blocks.0.attn.qkv.bias_mask",
        "blocks.1.attn.q_norm.weight",
        "blocks.1.attn.k_norm.weight",
        "blocks.0.attn.gate",
        "blocks.0.mlp.w12.weight",
        "blocks.0.mlp.w3.bias",
        "blocks.1.ls1.gamma",
        "blocks.1.attn.q_bias",
        "blocks.1.attn.relative_position_bias_table",
        "blocks.1.extra",
        "something",
    ],
)
def test_a_tensor_of_the_encoder_without_a_place_is_named(name: str) -> None:
    for prefix in ("", "teacher.backbone."):
        state = under(prefix, state_of() | {name: torch.full((16,), 0.5)})
        with pytest.raises(UserError, match=foreign.rename(name).replace(".", r"\.")):
            foreign.convert(state, SIZE, PLACE)


def test_many_tensors_without_a_place_are_counted() -> None:
    state = state_of() | {f"blocks.{i}.x{k}": torch.zeros(1) for i in (0, 1) for k in range(5)}
    with pytest.raises(UserError, match=r"blocks\.0\.x0, .* and 4 more.* no place for these tensors"):
        foreign.convert(state, SIZE, PLACE)


def test_positions_are_needed() -> None:
    state = state_of()
    del state["pos_embed"]
    with pytest.raises(UserError, match=r"'pos_embed'.*\(1, 17, 16\)"):
        foreign.convert(state, SIZE, PLACE)
    tables = state_of(pos_embed="none", rel_pos="block")
    foreign.convert(tables, SIZE, PLACE)
    del tables["blocks.1.attn.rel_pos_bias.table"]
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.rel_pos_bias\.table.*lacks it"):
        foreign.convert(tables, SIZE, PLACE)


def test_another_depth_is_refused() -> None:
    deeper = state_of() | under("blocks.2.", {"norm1.weight": torch.ones(16)})
    with pytest.raises(UserError, match="file has 3 blocks; the recipe's ViT has 2"):
        foreign.convert(deeper, SIZE, PLACE)
    shallow = {name: tensor for name, tensor in state_of().items() if "blocks.1." not in name}
    with pytest.raises(UserError, match=r"blocks\.1\.norm1\.weight.*lacks it"):
        foreign.convert(shallow, SIZE, PLACE)


def test_another_head_count_is_refused_where_the_file_shows_it() -> None:
    tables = state_of(pos_embed="none", rel_pos="shared")
    tables["rel_pos_bias.table"] = torch.zeros(52, 4)
    with pytest.raises(UserError, match=r"rel_pos_bias\.table.*\(52, 4\).*\(52, 2\)"):
        foreign.convert(tables, SIZE, PLACE)
    state = Checkpoint(state_of())
    state.num_heads = frozenset({4})
    with pytest.raises(UserError, match="num_heads: '4'.*recipe has 2"):
        foreign.convert(state, SIZE, PLACE)
    state.num_heads = frozenset({2})
    foreign.convert(state, SIZE, PLACE)


# -- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity"), (-1e30, r"-1e\+30")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc2.weight", "pos_embed", "cls_token"])
def test_values_that_no_network_has_are_named(
    name: str, dtype: torch.dtype, value: float, found: str
) -> None:
    state = {key: tensor.to(dtype) for key, tensor in state_of().items()}
    state[name].view(-1)[-1] = value
    with pytest.raises(
        UserError, match=f"{name}.*{found if dtype != torch.bfloat16 else ''}.*no sound network"
    ):
        foreign.convert(state, SIZE, PLACE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: (tensor * 100).to(torch.int8), "torch.int8"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "torch.float8"),
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "without values"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "torch.qint8"),
    ],
    ids=["int8", "float8", "sparse", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["norm.weight", "pos_embed", "blocks.0.ls1.gamma"])
def test_weights_that_are_not_plain_numbers_are_refused(
    name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    state = state_of(layer_scale_init=0.1)
    state[name] = change(state[name])
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        foreign.convert(state, SIZE, PLACE)


# -- what official checkpoints hold besides -----------------------------------------------------------------

BEIT = {"pos_embed": "none", "rel_pos": "shared", "layer_scale_init": 0.1, "key_bias": False}
INDEX = relative_position_index(4, 4, torch.device("cpu"))
OFFICIAL = {  # names as the official codes save them; shapes do not matter for what is dropped
    "MAE": ({}, ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"]),
    "MAE, rest": ({}, ["decoder_norm.bias", "decoder_pred.weight"]),
    "fine-tuned": ({}, ["head.weight", "head.bias", "fc_norm.weight"]),
    "BEiT": (BEIT, ["mask_token", "lm_head.weight", "lm_head.bias"]),
    "BEiT v2": (BEIT, ["mask_token", "lm_head.weight", "cls_pt_layers.0.attn.qkv.weight"]),
    "iBOT": ({"pos_embed": "learned"}, ["masked_embed", "head.mlp.0.weight", "head.last_layer2.weight_v"]),
    "DINOv2": ({"layer_scale_init": 0.1}, ["mask_token", "dino_head.mlp.0.bias", "ibot_patch_loss.center"]),
    "data2vec": (BEIT, ["mask_token", "regression_head.0.weight", "lm_head.weight"]),
    "SimMIM": ({}, ["mask_token", "decoder.0.weight"]),
    "MoCo v3": ({}, ["head.0.weight", "predictor.1.running_mean", "queue"]),
}


@pytest.mark.parametrize("prefix", ["", "model.", "teacher.backbone."])
@pytest.mark.parametrize("kind", OFFICIAL)
def test_what_official_checkpoints_hold_besides_is_dropped_and_listed(kind: str, prefix: str) -> None:
    variant, names = OFFICIAL[kind]
    state = state_of(**variant)
    vit, report = foreign.convert(under(prefix, state | {n: torch.zeros(2) for n in names}), SIZE, PLACE)
    assert report.dropped == sorted(names) and sorted(report.loaded) == sorted(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())


def test_buffers_that_repeat_what_we_compute_are_dropped_and_others_not() -> None:
    state = state_of(**{**BEIT, "rel_pos": "block"})
    buffers = {f"blocks.{i}.attn.{name}": tensor for i in (0, 1) for name, tensor in (
        ("relative_position_index", INDEX), ("k_bias", torch.zeros(16))
    )}  # fmt: skip
    _, report = foreign.convert(state | buffers, SIZE, PLACE)
    assert report.dropped == sorted(buffers)
    for name, tensor in (("relative_position_index", INDEX.T.clone()), ("k_bias", torch.ones(16))):
        with pytest.raises(UserError, match=rf"blocks\.1\.attn\.{name}.*no place"):
            foreign.convert(state | buffers | {f"blocks.1.attn.{name}": tensor}, SIZE, PLACE)
