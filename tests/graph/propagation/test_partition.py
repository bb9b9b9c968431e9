"""Labels: union, splits into outer and inner labels, alignment of label sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimfast.graph.propagation.label_matrices import Mark, merge
from slimfast.graph.propagation.partition import Partition


def _same(partition: Partition, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two label matrices have the same set of labels in every row."""
    left, right = partition.resolve(a), partition.resolve(b)
    return [set(r[r > 0]) for r in left] == [set(r[r > 0]) for r in right]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60), st.integers(1, 7))
def test_union_agrees_with_a_union_find_of_sets(pairs, batch):
    partition = Partition()
    labels = partition.fresh(20)
    classes = [{i} for i in range(20)]
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        partition.union(labels[[a for a, _ in some]], labels[[b for _, b in some]])
        for a, b in some:
            joined = classes[a] | classes[b]
            for i in joined:
                classes[i] = joined
    found = partition.find(labels)
    for i in range(20):
        assert {j for j in range(20) if found[j] == found[i]} == classes[i]


def test_a_chain_of_unions_in_one_batch_keeps_marks_and_reasons():
    partition = Partition()
    labels = partition.fresh(4)
    partition.add_mark(labels[3:, None], Mark.HEAD)
    partition.freeze_classes(labels[2:3, None], 7)
    partition.make_inexact(labels[1:2, None], 5)
    partition.union(labels[[3, 2, 1]], labels[[2, 1, 0]])
    root = partition.find(labels[:1])
    assert partition.marks(root)[0] == Mark.HEAD
    assert partition.frozen_reasons(root).tolist() == [7]
    assert partition.inexact_reason(root) == 5


def test_many_labels_are_kept_when_the_arrays_grow():
    partition = Partition()
    first = partition.fresh(600)
    partition.union(first[:300], first[300:])
    second = partition.fresh(5000)
    assert (partition.find(first[300:]) == partition.find(first[:300])).all()
    assert len(set(partition.find(second).tolist())) == 5000


def test_a_split_of_a_merge_gives_the_parts_back():
    partition = Partition()
    a, b = partition.fresh(3)[:, None], partition.fresh(4)[:, None]
    outer, inner = partition.split_grid(merge(a, b), 3, 4, 1)
    assert (outer == a).all()
    assert (inner == b).all()


def test_a_split_of_plain_labels_leaves_a_rectangle():
    partition = Partition()
    flat = partition.fresh(6)[:, None]
    outer, inner = partition.split_grid(flat, 2, 3, 1)
    assert len(set(outer.ravel())) == 2
    assert len(set(inner.ravel())) == 3
    # the old labels now say the same as the reshaped axis
    assert _same(partition, flat, merge(outer, inner))


def test_a_split_with_a_fixed_index_freezes_its_row_and_column():
    partition = Partition()
    flat = partition.fresh(6)[:, None]
    flat[4] = 0
    outer, inner = partition.split_grid(flat, 2, 3, 9)
    assert partition.frozen(partition.find(outer)).ravel().tolist() == [False, True]
    assert partition.frozen(partition.find(inner)).ravel().tolist() == [False, True, False]


def test_a_label_at_two_places_of_a_grid_joins_their_rows_and_columns():
    partition = Partition()
    x = partition.fresh(5)
    flat = np.array([x[0], x[1], x[2], x[3], x[4], x[0]])[:, None]
    outer, inner = partition.split_grid(flat, 2, 3, 1)
    rows, columns = partition.find(outer).ravel(), partition.find(inner).ravel()
    assert rows[0] == rows[1]
    assert columns[0] == columns[2] != columns[1]


def test_plain_labels_meeting_heads_are_split_like_them():
    partition = Partition()
    heads, dims = partition.fresh(2)[:, None], partition.fresh(3)[:, None]
    plain = partition.fresh(6)[:, None]
    partition.join_rows(plain, merge(heads, dims), 1)
    assert _same(partition, plain, merge(heads, dims))
    assert len(set(partition.find(heads).ravel())) == 2
    assert len(set(partition.find(dims).ravel())) == 3


def test_two_head_axes_pair_heads_with_heads_whatever_their_order():
    partition = Partition()
    h1, d1, h2, d2 = (partition.fresh(n)[:, None] for n in (2, 3, 2, 3))
    swapped = merge(h2, d2)[:, ::-1]
    partition.join_rows(merge(h1, d1), swapped, 1)
    assert (partition.find(h1) == partition.find(h2)).all()
    assert (partition.find(d1) == partition.find(d2)).all()
    assert len(set(partition.find(h1).ravel())) == 2


def test_three_labels_meeting_one_split_it_in_three():
    partition = Partition()
    a, b, c = (partition.fresh(2)[:, None] for _ in range(3))
    product = merge(merge(a, b), c)
    plain = partition.fresh(8)[:, None]
    partition.join_rows(plain, product, 1)
    assert _same(partition, plain, product)
    assert len(set(partition.find(np.concatenate([a, b, c])).ravel())) == 6


def test_heads_of_different_sizes_meet_in_blocks_that_fit_both():
    partition = Partition()
    h1, d1, h2, d2 = (partition.fresh(n)[:, None] for n in (4, 6, 6, 4))
    partition.join_rows(merge(h1, d1), merge(h2, d2), 1)
    assert _same(partition, merge(h1, d1), merge(h2, d2))


def test_a_label_that_meets_none_is_frozen_and_keeps_its_first_reason():
    partition = Partition()
    labels = partition.fresh(2)[:, None]
    partition.join_rows(labels, np.zeros((2, 0), dtype=np.int64), 3)
    partition.freeze_classes(labels, 8)
    assert partition.frozen_reasons(labels.ravel()).tolist() == [3, 3]


def test_a_frozen_factor_says_nothing():
    partition = Partition()
    thirds, rest = partition.fresh(3)[:, None], partition.fresh(4)[:, None]
    partition.freeze_classes(thirds, 1)
    plain = partition.fresh(12)[:, None]
    partition.join_rows(plain, merge(thirds, rest), 1)
    assert (partition.find(plain).reshape(3, 4) == partition.find(rest).ravel()).all()


def test_a_split_hands_down_reasons_but_not_the_mark_of_a_head():
    partition = Partition()
    x = partition.fresh(1)
    partition.add_mark(x[:, None], Mark.HEAD | Mark.ADDED)
    partition.make_inexact(x[:, None], 4)
    outer, inner = partition.fresh(1), partition.fresh(1)
    partition.expand(x, outer, inner)
    for part in (outer, inner):
        assert partition.marks(part)[0] == Mark.ADDED
        assert partition.inexact_reason(part) == 4


@pytest.mark.parametrize("seed", range(20))
def test_alignment_of_anything_ends_and_makes_rows_equal(seed):
    """Rows of random label sets: whatever is joined, split or frozen, both sides say the same in the end."""
    generator = np.random.default_rng(seed)
    partition = Partition()
    pool = partition.fresh(12)
    partition.freeze_classes(pool[:2, None], 1)
    for _ in range(4):
        n = int(generator.integers(1, 8))
        sides = []
        for _ in range(2):
            k = int(generator.integers(1, 4))
            side = generator.choice(pool, (n, k))
            side[generator.random((n, k)) < 0.3] = 0
            sides.append(side)
        partition.join_rows(sides[0], sides[1], 2)
        left, right = (partition.resolve(side) for side in sides)
        for a, b in zip(left, right, strict=True):
            free_a = {x for x in a[a > 0] if not partition.frozen(np.array(x))}
            free_b = {x for x in b[b > 0] if not partition.frozen(np.array(x))}
            assert free_a == free_b


@given(st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=2), max_size=30), st.integers(0, 3))
def test_the_classes_in_a_matrix_are_those_of_its_rows_however_often_they_stand_there(rows, splits):
    partition = Partition()
    labels = partition.fresh(8)
    partition.union(labels[:1], labels[1:2])
    for label in labels[2 : 2 + splits]:
        partition.expand(np.array([label]), *(partition.fresh(1) for _ in range(2)))
    matrix = np.array(rows, dtype=np.int64).reshape(-1, 2)
    expected = set(partition.resolve(matrix).ravel().tolist()) - {0}
    for times in (1, 2, 50):
        assert set(partition.classes(np.tile(matrix, (times, 1))).tolist()) == expected
    # nothing is left behind where the labels were noted
    assert not partition._scratch.any()


@pytest.mark.parametrize("times", [1, 1000])
def test_what_stands_in_a_matrix_many_times_is_frozen_and_nothing_else(times):
    partition = Partition()
    labels = partition.fresh(6)
    partition.freeze_classes(np.tile(np.stack([labels[:3], 0 * labels[:3]], 1), (times, 1)), 5)
    assert partition.frozen(labels).tolist() == [True] * 3 + [False] * 3
