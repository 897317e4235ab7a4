"""Refuses weights that no sound network has: NaN, infinity, and values beyond any that training gives."""

from __future__ import annotations

from torch import Tensor

from mimbench.errors import UserError

LARGEST = 1e8  # a flipped exponent bit gives some 1e30, which is finite; fp16 ends at 65504


def require_sound(where: str, name: str, tensor: Tensor, remedy: str) -> None:
    """Check every value of one tensor; integers and booleans pass.

    Args:
        where: the file, for the message. name: the tensor's. remedy: what to do about it.

    Raises:
        UserError: a value is NaN, infinite, or larger than 1e8; the message names file and tensor.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = (float(value) for value in tensor.detach().float().aminmax())  # NaN if any value is
    if -LARGEST <= low and high <= LARGEST:
        return
    extreme = low if abs(low) > abs(high) else high
    found = "NaN" if high != high else "infinity" if abs(extreme) == float("inf") else f"{extreme:.3g}"
    raise UserError(where, name, remedy=f"It holds {found}: no sound network has such a weight. {remedy}")
