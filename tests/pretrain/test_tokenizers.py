"""The tokenizers of BEiT and PeCo, and the codebook that the latter shares with others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mimbench import catalog
from mimbench.data.augment import normalise
from mimbench.errors import UserError
from pretrain.conv_vae import ConvDecoder, ConvEncoder, conv_flops
from pretrain.methods import mae
from pretrain.quantizer import VectorQuantizer
from pretrain.teachers import dvae, peco_codebook

# -- the codebook --------------------------------------------------------------------------------------------


def vectors(batch: int = 4, spread: float = 0.05) -> Tensor:
    """Vectors `[B, 32, 2]` around eight centres on two circles."""
    angles = torch.randint(4, (batch, 32)) * math.pi / 2
    radius = 1.0 + 2 * torch.randint(2, (batch, 32))
    centres = torch.stack([angles.cos() * radius, angles.sin() * radius], dim=2)
    return centres + spread * torch.randn(batch, 32, 2)


def trained(num_codes: int = 16, *, cosine: bool = False, steps: int = 400) -> VectorQuantizer:
    quantizer = VectorQuantizer(num_codes, 2, decay=0.9, cosine=cosine)
    for _ in range(steps):
        quantizer(vectors())
        quantizer.update()
    return quantizer


@pytest.mark.parametrize("cosine", [False, True])
def test_ids_are_those_of_the_nearest_codes(cosine: bool) -> None:
    quantizer = VectorQuantizer(16, 2, cosine=cosine)
    z = torch.randn(3, 5, 2)
    quantised, ids, loss = quantizer(z)
    unit = F.normalize(z, dim=-1) if cosine else z
    distance = (unit[:, :, None] - quantizer.codebook).norm(dim=-1)
    assert ids.shape == (3, 5) and ids.dtype == torch.int64
    assert torch.equal(ids, distance.argmin(dim=-1)) and torch.equal(ids, quantizer.nearest(unit))
    torch.testing.assert_close(quantised, quantizer.codes(ids))
    torch.testing.assert_close(loss, distance.min(dim=-1).values.square().mean() / 2)


def test_cosine_forgets_length() -> None:
    quantizer, z = VectorQuantizer(16, 2, cosine=True), torch.randn(3, 5, 2)
    assert torch.equal(quantizer(z)[1], quantizer(7 * z)[1])
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))
    quantizer.update()
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))


def test_gradient_passes_straight_through() -> None:
    z, weight = torch.randn(2, 3, 2, requires_grad=True), torch.randn(2, 3, 2)
    (VectorQuantizer(16, 2)(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_commitment_moves_the_vectors_only() -> None:
    quantizer, z = VectorQuantizer(16, 2), torch.randn(2, 3, 2, requires_grad=True)
    quantised, _, loss = quantizer(z)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * (z - quantised).detach() / z.numel())
    assert not list(quantizer.parameters()) and not quantizer.codebook.requires_grad


def test_forward_changes_nothing_and_update_only_after_training() -> None:
    quantizer = VectorQuantizer(16, 2)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(vectors())
    quantizer.update()
    quantizer.train()(vectors())
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    quantizer.update()
    assert not torch.equal(before["codebook"], quantizer.codebook)


def test_codes_are_moving_means_of_their_vectors() -> None:
    quantizer = VectorQuantizer(2, 2, decay=0.75)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    quantizer.size.copy_(torch.tensor([3.0, 3.0]))
    quantizer.total.copy_(quantizer.codebook * 3)
    quantizer(torch.tensor([[[2.0, 1.0], [2.0, 3.0], [3.0, 2.0], [-5.0, 0.0]]]))
    quantizer.update()
    torch.testing.assert_close(quantizer.size, torch.tensor([3.0, 2.5]))
    first = (0.75 * torch.tensor([3.0, 0.0]) + 0.25 * torch.tensor([7.0, 6.0])) / 3.0
    second = (0.75 * torch.tensor([-3.0, 0.0]) + 0.25 * torch.tensor([-5.0, 0.0])) / 2.5
    torch.testing.assert_close(quantizer.codebook, torch.stack([first, second]))


@pytest.mark.parametrize(("cosine", "clusters"), [(False, 8), (True, 4)])
def test_every_cluster_finds_codes_and_codes_restart(cosine: bool, clusters: int) -> None:
    quantizer = trained(cosine=cosine).eval()
    z = vectors(8, spread=0.0)
    _, ids, loss = quantizer(z)
    if cosine:
        assert loss < 1e-3
    assert loss < 0.1 * z.var() and len(ids.unique()) >= clusters - 1  # two near clusters may share a code
    quantizer.codebook[3] = quantizer.total[3] = 1e3  # far from everything: never chosen again
    quantizer.size[3] = 1.0
    quantizer.train()
    for _ in range(60):
        quantizer(vectors())
        quantizer.update()
    assert quantizer.codebook[3].norm() < 5


def test_a_seed_decides_the_codes() -> None:
    torch.manual_seed(1)
    one = trained(steps=30).codebook
    torch.manual_seed(1)
    assert torch.equal(one, trained(steps=30).codebook)


# -- the convolutional networks ------------------------------------------------------------------------------


def test_dall_es_encoder_at_its_own_size() -> None:
    with torch.device("meta"):
        recipe = dvae.METHOD.recipes()["paper"]
        encoder = dvae.Encoder(recipe)
        logits = encoder(torch.zeros(1, 3, 112, 112))
    assert logits.shape == (1, 8192, 14, 14)
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert encoder.stem.weight.shape == (256, 3, 7, 7)
    assert [group[-1].convs[-1].weight.shape[0] for group in encoder.groups] == [256, 512, 1024, 2048]
    assert all(block.gain == 1 / 64 for group in encoder.groups for block in group)
    assert len(encoder.groups) == 4 and all(len(group) == 2 for group in encoder.groups)


def test_flops_are_those_counted() -> None:
    for width, channels, side, patch_size, num_blocks in ((256, 8192, 112, 8, 2), (16, 64, 16, 4, 1)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            sizes = {"width": width, "patch_size": patch_size, "num_blocks": num_blocks}
            ConvEncoder(out_channels=channels, **sizes)(torch.zeros(1, 3, side, side))
        assert counter.get_total_flops() == conv_flops(width, channels, side, patch_size, num_blocks)


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_encoder_and_decoder_are_mirrors(patch_size: int) -> None:
    sizes = {"width": 8, "patch_size": patch_size, "num_blocks": 1}
    z = ConvEncoder(out_channels=5, **sizes)(torch.randn(2, 3, 16, 16))
    assert z.shape == (2, 5, 16 // patch_size, 16 // patch_size)
    assert ConvDecoder(in_channels=5, out_channels=6, **sizes)(z).shape == (2, 6, 16, 16)


# -- DALL-E's discrete VAE -----------------------------------------------------------------------------------


def test_pixels_are_taken_back_from_imagenets_statistics() -> None:
    encoder = dvae.Encoder(dvae.METHOD.recipes()["smoke"])
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(encoder.pixels(normalise(images)), images / 255 * 0.8 + 0.1)


@pytest.mark.parametrize("side", [16, 32])
def test_one_token_for_each_of_the_students_patches(side: int) -> None:
    images = torch.randn(2, 3, side, side)
    for encoder in (
        dvae.Encoder(dvae.METHOD.recipes()["smoke"]),
        peco_codebook.Tokenizer(peco_codebook.METHOD.recipes()["smoke"]),
    ):
        ids = encoder.eval().tokens(images)
        assert ids.shape == (2, 16) and ids.dtype == torch.int64
        assert ids.min() >= 0 and ids.max() < 64


def test_logit_laplace_is_a_density() -> None:
    grid = (torch.arange(20000) + 0.5).double() / 20000
    for location, log_scale in ((0.0, 0.0), (0.7, -1.0), (-1.5, 0.3)):
        nll = dvae.logit_laplace(grid, torch.tensor(location).double(), torch.tensor(log_scale).double())
        assert (-nll).exp().mean().item() == pytest.approx(1.0, abs=2e-3)


def test_temperature_and_divergence_are_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dvae.METHOD.recipes()["smoke"].vary("test", kl_weight=4.8, anneal_fraction=0.5)
    method, seen = dvae.DVAE(recipe), []
    softmax = F.gumbel_softmax
    monkeypatch.setattr(F, "gumbel_softmax", lambda x, tau, dim: seen.append(tau) or softmax(x, tau, dim=dim))
    images = torch.randn(2, 3, 16, 16)
    weights = []
    for fraction in (0.0, 0.25, 0.5, 0.9):
        scalars = method(images, fraction)
        weights.append(((scalars["loss"] - scalars["distortion"]) / scalars["kl"]).item())
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert weights == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-5), "4.8 over the 48 values of a patch"


def test_divergence_from_the_uniform_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    method = dvae.DVAE(dvae.METHOD.recipes()["smoke"])
    images = torch.randn(2, 3, 16, 16)
    for scale, expected in ((0.0, 0.0), (1e3, math.log(64))):
        logits = scale * F.one_hot(torch.randint(64, (2, 4, 4)), 64).permute(0, 3, 1, 2).float()
        monkeypatch.setattr(method.encoder, "forward", lambda pixels, logits=logits: logits)
        assert method(images, 0.5)["kl"].item() == pytest.approx(expected, abs=1e-4)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    recipe = dvae.METHOD.recipes()["paper"].vary("test", width=8, num_codes=16)
    state = {dvae.official_name(name): tensor for name, tensor in dvae.Encoder(recipe).state_dict().items()}
    assert {"blocks.input.w", "blocks.group_4.block_2.res_path.conv_4.b", "blocks.output.conv.b"} <= set(
        state
    )
    save_file(state, tmp_path / "right.safetensors")
    assert isinstance(dvae.load_official(recipe, tmp_path / "right.safetensors"), dvae.Encoder)
    with pytest.raises(UserError, match=r"the recipe needs \(32, .*DALL-E"):
        dvae.load_official(recipe.vary("test", num_codes=32), tmp_path / "right.safetensors")
    torch.save({"model": {f"module.{name}": w for name, w in state.items()}}, tmp_path / "wrapped.pth")
    dvae.load_official(recipe, tmp_path / "wrapped.pth")
    more = {"blocks.group_5.block_1.id_path.w": torch.zeros(1), "blocks.input.b": torch.full((8,), torch.nan)}
    for name, tensor in more.items():
        save_file({**state, name: tensor}, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError, match=f"--weights dall-e .*{name}"):
            dvae.load_official(recipe, tmp_path / "wrong.safetensors")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pkl")
    with pytest.raises(UserError, match=r"objects of .*Linear.*make a \.safetensors"):
        dvae.load_official(recipe, tmp_path / "module.pkl")


# -- PeCo's codebook -----------------------------------------------------------------------------------------


@pytest.fixture
def codebook() -> peco_codebook.PeCoCodebook:
    perceptual = mae.MAE(mae.METHOD.recipes()["smoke"]).requires_grad_(False)
    return peco_codebook.PeCoCodebook(peco_codebook.METHOD.recipes()["smoke"], perceptual).train()


def test_loss_has_pixels_features_and_commitment(codebook: peco_codebook.PeCoCodebook) -> None:
    scalars = codebook(torch.randn(2, 3, 16, 16), 0.0)
    expected = scalars["pixel"] + scalars["perceptual"] + 0.25 * scalars["commitment"]
    torch.testing.assert_close(scalars["loss"], expected)


def test_perceptual_loss_compares_what_a_frozen_network_sees(codebook: peco_codebook.PeCoCodebook) -> None:
    assert not codebook.perceptual.training
    images = torch.randn(2, 3, 32, 32)
    features = codebook.features(images)
    assert [x.shape for x in features] == [(2, 17, 32)] * 2
    with torch.no_grad():
        second = codebook.perceptual.encoder.encode(codebook.perceptual.encoder.embed(images), taps=[1])[0]
    torch.testing.assert_close(features[0], F.layer_norm(second, (32,)))


def test_reconstruction_learns_through_the_frozen_network(codebook: peco_codebook.PeCoCodebook) -> None:
    codebook(torch.randn(2, 3, 16, 16), 0.0)["perceptual"].backward()
    assert codebook.decoder.head.weight.grad.any() and codebook.tokenizer.encoder.stem.weight.grad.any()
    assert all(p.grad is None for p in codebook.perceptual.parameters())


def test_codes_move_after_the_step(codebook: peco_codebook.PeCoCodebook) -> None:
    before = codebook.tokenizer.quantizer.codebook.clone()
    codebook(torch.randn(2, 3, 16, 16), 0.0)
    assert torch.equal(before, codebook.tokenizer.quantizer.codebook)
    codebook.after_step(0)
    assert not torch.equal(before, codebook.tokenizer.quantizer.codebook)


@pytest.mark.parametrize(("method", "tokenizer"), [("beit", "dvae"), ("peco", "peco-codebook")])
def test_student_and_tokenizer_agree_at_every_scale(method: str, tokenizer: str) -> None:
    students, teachers = (
        catalog.card("method", method).recipes(),
        catalog.card("teacher", tokenizer).recipes(),
    )
    for scale, student in students.items():
        assert student.num_codes == teachers[scale].num_codes, scale
        assert student.num_patches == teachers[scale].num_patches, scale
        assert student.token_size == teachers[scale].img_size, scale
