"""A teacher's logits on disk: computed once a sample, whatever the batches, and only for that teacher."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimfast.distillation import CachedTeacher, distill
from slimfast.errors import SlimfastError


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.layer(x)


def test_each_sample_is_computed_once(tmp_path: Path) -> None:
    teacher = Counting()
    x = torch.randn(10, 4)
    cached = CachedTeacher(teacher, tmp_path / "logits")
    expected = teacher.layer(x).detach()
    assert torch.allclose(cached(x[:6]), expected[:6])
    assert torch.allclose(cached(x[[7, 2, 9, 2]]), expected[[7, 2, 9, 2]])
    assert teacher.seen == 8
    again = CachedTeacher(teacher, tmp_path / "logits")
    assert len(again) == 8
    assert torch.allclose(again(x), expected, atol=1e-6)
    assert teacher.seen == 10


def test_a_record_that_was_cut_short_is_computed_again(tmp_path: Path) -> None:
    teacher, x = Counting(), torch.randn(3, 4)
    path = tmp_path / "logits"
    CachedTeacher(teacher, path)(x)
    path.write_bytes(path.read_bytes()[:-5])
    again = CachedTeacher(teacher, path)
    assert len(again) == 2
    assert torch.allclose(again(x), teacher.layer(x), atol=1e-6)
    assert len(CachedTeacher(teacher, path)) == 3


@pytest.mark.parametrize("length", [0, 5, 18, 20, 34, 35, 40, 43, 44, 60])
def test_a_run_killed_in_its_first_moment_is_begun_anew(tmp_path: Path, length: int) -> None:
    teacher, x = Counting(), torch.randn(3, 4)
    path = tmp_path / "logits"
    CachedTeacher(teacher, path)(x)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    again = CachedTeacher(teacher, path)
    assert len(again) == 0
    assert torch.allclose(again(x), teacher.layer(x), atol=1e-6)
    assert path.read_bytes() == whole


def test_records_follow_whole_records_whoever_writes(tmp_path: Path) -> None:
    teacher, x = Counting(), torch.randn(6, 4)
    path = tmp_path / "logits"
    # Two processes that begin at once, and a third that is killed while it writes.
    first, second = CachedTeacher(teacher, path), CachedTeacher(teacher, path)
    first(x[:2])
    with path.open("ab") as file:
        file.write(b"half a record")
    second(x[1:4])
    first(x[4:])
    again = CachedTeacher(teacher, path)
    assert len(again) == 6
    seen = teacher.seen
    assert torch.allclose(again(x), teacher.layer(x), atol=1e-6)
    assert teacher.seen == seen


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path) -> None:
    teacher, x = Counting(), torch.randn(64, 4)
    path = tmp_path / "logits"
    cached = CachedTeacher(teacher, path)
    cached(x[:2])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(SlimfastError, match=r"^cannot write .*logits: File too large$"):
            cached(x)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert len(cached) == 2
    assert torch.allclose(cached(x), teacher.layer(x), atol=1e-6)
    assert len(CachedTeacher(teacher, path)) == 64


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    teacher, x = Counting(), torch.randn(3, 4)
    CachedTeacher(teacher, tmp_path / "logits")(x)
    with torch.no_grad():
        teacher.layer.weight[0, 0] += 1
    with pytest.raises(SlimfastError, match="expected logits of this teacher, got another's"):
        CachedTeacher(teacher, tmp_path / "logits")
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(SlimfastError, match="expected logits of slimfast, got another file"):
        CachedTeacher(teacher, tmp_path / "other")


def test_a_training_with_a_cached_teacher_is_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 8, 4, generator=generator)
    train = [(x, torch.randint(3, (8,), generator=generator)) for x in inputs]
    weights = []
    for cached in (False, True):
        teacher = Counting()
        torch.manual_seed(3)
        student = nn.Linear(4, 3)
        used = CachedTeacher(teacher, tmp_path / "logits") if cached else teacher
        distill(student, teacher=used, train=train, epochs=3, progress=False)
        weights.append(student.weight.detach().clone())
    assert teacher.seen == 24
    assert torch.allclose(*weights, atol=1e-6)
