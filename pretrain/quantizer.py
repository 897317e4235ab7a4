"""A learned codebook: vector quantisation whose codes follow the vectors assigned to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Replaces every vector by the nearest of `num_codes` codes (VQ-VAE, van den Oord et al., NeurIPS 2017).

    The codes learn by moving averages (VQ-VAE, appendix A.1), not by gradient: each moves to the mean of the
    vectors that chose it. Codes that are rarely chosen restart at vectors of the last batch; after the first
    step nearly all do. The forward pass changes no code: call `update` after each step.

    Args:
        dim: width of vectors and codes.
        decay: of the moving averages.
        cosine: compare only directions: vectors and codes have norm 1 (BEiT v2's VQ-KD).
    """

    RESTART_BELOW = 0.1  # ours: a share of the mean number of vectors per code

    codebook: Tensor
    size: Tensor
    total: Tensor

    def __init__(self, num_codes: int, dim: int, *, decay: float = 0.99, cosine: bool = False) -> None:
        super().__init__()
        self.decay, self.cosine = decay, cosine
        codebook = torch.randn(num_codes, dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=1) if cosine else codebook)
        self.register_buffer("size", torch.zeros(num_codes))  # vectors per batch, a moving average
        self.register_buffer("total", torch.zeros(num_codes, dim))  # and their sum
        self.last: tuple[Tensor, Tensor] | None = None  # vectors and ids since the last update

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise z `[B, N, dim]`.

        Returns:
            The codes `[B, N, dim]` with a straight-through gradient to z; their ids `[B, N]`; the commitment
            loss: mean squared distance between z and its code, without gradient for the code.
        """
        z = z.float()  # fp32 also under autocast: close codes differ little
        if self.cosine:
            z = F.normalize(z, dim=-1)
        ids = self.nearest(z)
        codes = self.codes(ids)
        if self.training:
            self.last = z.detach().flatten(0, 1), ids.flatten()
        return z + (codes - z).detach(), ids, F.mse_loss(z, codes)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids `[B, N]` of the codes nearest to z `[B, N, dim]`."""
        with torch.no_grad():
            return torch.cdist(z, self.codebook).argmin(dim=-1)

    def codes(self, ids: Tensor) -> Tensor:
        """The codes of ids `[B, N]`: `[B, N, dim]`."""
        return F.embedding(ids, self.codebook)

    @torch.no_grad()
    def update(self) -> None:
        """Move the codes towards the vectors of the last forward pass in training mode, if there was one."""
        if self.last is None:
            return
        z, ids = self.last  # [M, dim], [M]
        self.last = None
        size = torch.zeros_like(self.size).index_add(0, ids, z.new_ones(len(z)))
        total = torch.zeros_like(self.total).index_add(0, ids, z)
        self.size.lerp_(size, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        share = len(z) / len(self.size)
        dead = self.size < self.RESTART_BELOW * share  # [K]
        fresh = z[torch.randint(len(z), dead.shape, device=z.device)]  # [K, dim]
        self.size.copy_(torch.where(dead, share, self.size))
        self.total.copy_(torch.where(dead[:, None], fresh * share, self.total))
        self.codebook.copy_(self.total / self.size[:, None])
        if self.cosine:
            self.codebook.copy_(F.normalize(self.codebook, dim=1))
