"""How the Triton covariance is cut into work: every tile once, long pieces first, wide loads seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimfast.kernels.backends.triton import schedule


@pytest.mark.parametrize(
    "sizes", [[(300, 1000), (64, 4608), (7, 3)], [(2048, 512)], [(512, 8192)] * 20, [(1, 1)]], ids=str
)
@pytest.mark.parametrize("size", [64, 4096])
def test_schedule_covers_every_tile_once(sizes, size):
    tiles = schedule.choose_tiles(size, torch.float32, exact=False)
    work = schedule.gram_work(sizes, tiles)
    lengths = work.items[:, 4] - work.items[:, 3]
    assert (np.diff(lengths) <= 0).all()
    assert (work.items[:, 3] % tiles.depth == 0).all()
    covered = {}
    for layer, i, j, begin, end, slot in work.items.tolist():
        covered.setdefault((layer, i, j), []).append((begin, end, slot))
    wanted = set()
    for layer, (m, _) in enumerate(sizes):
        count = -(-m // tiles.block)
        wanted |= {(layer, i, j) for i in range(count) for j in range(i + 1)}
    assert set(covered) == wanted
    added = {(layer, i, j): (first, pieces) for layer, i, j, first, pieces in work.cut.tolist()}
    slots = []
    for tile, pieces in covered.items():
        pieces.sort()
        ends = [0, *(end for _, end, _ in pieces)]
        assert [begin for begin, _, _ in pieces] == ends[:-1]
        assert ends[-1] == sizes[tile[0]][1]
        if len(pieces) == 1:
            assert pieces[0][2] == -1
            assert tile not in added
        else:
            assert added[tile] == (pieces[0][2], len(pieces))
            slots += [slot for _, _, slot in pieces]
    assert sorted(slots) == list(range(work.slots))


def test_schedule_cuts_a_layer_of_few_tiles_along_k():
    def items(m, k):
        tiles = schedule.choose_tiles(m, torch.float32, exact=False)
        return len(schedule.gram_work([(m, k)], tiles).items)

    # Ten tiles of 128; three, in pieces of eight steps at least; one of 64; more than enough of them.
    assert items(512, 4608) == 40
    assert items(256, 2304) == 27
    assert items(64, 576) == 2
    assert items(4096, 14336) == 528


def test_schedule_sees_where_wide_loads_are_possible():
    def aligned(x, by_rows=True):
        layers = schedule.layer_table([x], [by_rows], [torch.empty(1)], [0], centred_later=False)
        return layers.table[0, schedule.LAYER_FIELDS.index("aligned")]

    x = torch.zeros(8, 16)
    assert aligned(x) == schedule.ALIGNED_K
    assert aligned(x, by_rows=False) == schedule.ALIGNED_M
    assert aligned(x.T) == schedule.ALIGNED_M
    assert aligned(x.T, by_rows=False) == schedule.ALIGNED_K
    assert aligned(x[:, 1:]) == schedule.ALIGNED_NOT
    assert aligned(x[:, :15]) == schedule.ALIGNED_NOT
    assert aligned(torch.zeros(8, 18)) == schedule.ALIGNED_NOT
    assert aligned(torch.zeros(8, 18, dtype=torch.float64)) == schedule.ALIGNED_K
    assert aligned(x[:, ::2]) == schedule.ALIGNED_NOT
