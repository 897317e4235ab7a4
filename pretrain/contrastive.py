"""Contrastive losses on tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def homologous_contrast(tokens: Tensor, temperature: float) -> Tensor:
    """Tokens of the same source attract each other, all others of the sequence repel; mean over tokens.

    For token l, with positives P(l) (the other tokens of its source) and every other token l':
    `-mean_{p in P(l)} log(exp(cos(l, p) / t) / sum_{l'} exp(cos(l, l') / t))`; SupCon's L_out (Khosla et al.,
    2020) within one sequence. Equal tokens give log(S K - 1).

    Args:
        tokens: `[B, S, K, D]`: sequences of S sources with K >= 2 tokens each.
    """
    z = F.normalize(tokens.float(), dim=-1)  # [B, S, K, D]
    own = z.square().sum(dim=-1)  # [B, S, K]
    positive = ((z * z.sum(dim=2, keepdim=True)).sum(dim=-1) - own) / (z.shape[2] - 1)
    z = z.flatten(1, 2)  # [B, N, D]
    logits = (z @ z.mT).float() / temperature  # [B, N, N]
    itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    others = logits.masked_fill(itself, -torch.inf).logsumexp(dim=-1)  # [B, N]
    return (others - positive.flatten(1) / temperature).mean()
