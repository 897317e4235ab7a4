from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.render.sample import make_table


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("broken", [False, True])
def test_it_fits(width: int, broken: bool, shown: Callable[..., str]) -> None:
    lines = shown(make_table(broken=broken), width).splitlines()
    assert max(map(len, lines)) <= width
    header = [line for line in lines if line.lstrip().startswith("Method")]
    assert len(header) == {60: 4, 80: 2, 120: 1}[width]


def test_small_scale_numbers_are_marked(shown: Callable[..., str]) -> None:
    assert "ours†" in shown(make_table(scale="toy")) and "ours†" not in shown(make_table(scale="paper"))


def test_a_claim_is_one_sentence(shown: Callable[..., str]) -> None:
    claim = "Claim: Ours beats its host. Ours − Host, ImageNet-1K top-1: paper – | ours† +2.0 [+1.3, +2.8]"
    assert claim in shown(make_table(), 200)
