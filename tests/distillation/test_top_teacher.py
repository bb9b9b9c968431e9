"""The top of a teacher's logits on disk, text by text, and trainings towards them."""

from __future__ import annotations

import copy
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_decoders import VOCABULARY, llama, padded, texts
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import slimfast
from slimfast.distillation import CachedTeacher, DistillationLoss, distill, soft_target_loss
from slimfast.distillation.top_logits import TopLogits
from slimfast.errors import SlimfastError


class Counted(nn.Module):
    """A teacher that counts the texts it reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, **inputs: Any) -> Any:
        self.seen += len(inputs["input_ids"])
        return self.model(**inputs)


def test_each_text_is_computed_once_whatever_its_padding(tmp_path: Path) -> None:
    model, rows = llama(), texts(5, 9, 7)
    teacher = Counted(model)
    cached = CachedTeacher(teacher, tmp_path / "top", top=6, temperature=1.0)
    cached(**padded(rows[:2], 9))
    cached(**padded([rows[1], rows[0]], 14))
    assert (teacher.seen, len(cached)) == (2, 2)
    again = CachedTeacher(teacher, tmp_path / "top", top=6, temperature=1.0)
    assert len(again) == 2
    found = again(**padded([rows[0], rows[2], rows[0]], 11))
    assert (teacher.seen, len(again)) == (3, 3)
    assert isinstance(found, TopLogits)
    assert found.shape == (3, 11, VOCABULARY)
    for i, row in enumerate((rows[0], rows[2], rows[0])):
        # Alone, without padding.
        expected = model(input_ids=row[None]).logits[0].log_softmax(-1)
        ours = expected.gather(-1, found.indices[i, : len(row)])
        assert torch.allclose(found.values[i, : len(row)], ours, rtol=2**-10, atol=1e-5)
        rest = 1 - ours.exp().sum(-1)
        assert torch.allclose(found.rest[i, : len(row)].exp(), rest, atol=1e-5)
        assert found.rest[i, len(row) :].isneginf().all()


def test_left_padding_and_absolute_positions_make_other_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_positions=16, n_embd=8, n_layer=1, n_head=2, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    )
    model, rows = GPT2LMHeadModel(config).eval(), texts(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached = CachedTeacher(model, tmp_path / "top", top=VOCABULARY, temperature=1.0)
        left, right = padded(rows, 8, "left"), padded(rows, 8)
        found = [cached(**batch) for batch in (left, right)]
    assert len(cached) == 4
    for batch, top in zip((left, right), found, strict=True):
        whole = model(**batch).logits.log_softmax(-1)
        seen = batch["attention_mask"].bool()
        assert torch.allclose(whole.gather(-1, top.indices)[seen], top.values[seen], rtol=2**-10, atol=1e-5)
        assert top.values[~seen].isneginf().all()


def test_the_file_grows_by_the_tokens_that_count(tmp_path: Path) -> None:
    cached = CachedTeacher(llama(), tmp_path / "top", top=6, temperature=1.0)
    cached(**padded(texts(5), 20))
    before = (tmp_path / "top").stat().st_size
    cached(**padded(texts(11, seed=1), 20))
    # 16 bits of value and of token each, 32 of the rest, the key and the length.
    assert (tmp_path / "top").stat().st_size - before == 11 * (6 * 4 + 4) + 20


def test_what_a_stop_cut_short_is_computed_again_and_others_may_write(tmp_path: Path) -> None:
    model, rows, path = llama(), texts(5, 9, 7, 6), tmp_path / "top"
    teacher = Counted(model)
    first, second = (CachedTeacher(teacher, path, top=6, temperature=1.0) for _ in range(2))
    first(**padded(rows[:2], 9))
    with path.open("ab") as file:
        file.write(b"half a record")
    second(**padded(rows[2:3], 9))
    first(**padded(rows[3:], 9))
    assert (len(first), len(second)) == (4, 3)
    path.write_bytes(path.read_bytes()[:-5])
    again = CachedTeacher(teacher, path, top=6, temperature=1.0)
    assert (len(again), teacher.seen) == (3, 4)
    found = again(**padded(rows, 9))
    assert teacher.seen == 5
    expected = CachedTeacher(model, tmp_path / "other", top=6, temperature=1.0)(**padded(rows, 9))
    assert torch.allclose(found.values, expected.values, rtol=2**-9, atol=1e-5)


@pytest.mark.parametrize("length", [0, 7, 30, 40, 57])
def test_a_run_killed_in_its_first_moment_is_begun_anew(tmp_path: Path, length: int) -> None:
    model, batch, path = llama(), padded(texts(5), 5), tmp_path / "top"
    CachedTeacher(model, path, top=6, temperature=1.0)(**batch)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    again = CachedTeacher(model, path, top=6, temperature=1.0)
    assert len(again) == 0
    again(**batch)
    assert path.read_bytes() == whole


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "top"
    cached = CachedTeacher(model, path, top=6, temperature=1.0)
    cached(**padded(texts(5), 5))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(SlimfastError, match=r"^cannot write .*top: File too large$"):
            cached(**padded(texts(9, 9, seed=3), 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert len(cached) == 1


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    model, batch, path = llama(), padded(texts(5), 5), tmp_path / "top"
    waiting = CachedTeacher(model, path, top=5, temperature=1.0)
    CachedTeacher(model, path, top=6, temperature=1.0)(**batch)
    with pytest.raises(SlimfastError, match="another process keeps other logits"):
        waiting(**batch)
    with pytest.raises(
        SlimfastError, match=r"top 8 logits at temperature 1, got the top 6 at 1; use another"
    ):
        CachedTeacher(model, path, top=8, temperature=1.0)
    with pytest.raises(
        SlimfastError, match=r"top 6 logits at temperature 2, got the top 6 at 1; use another"
    ):
        CachedTeacher(model, path, top=6, temperature=2.0)
    with pytest.raises(SlimfastError, match="expected logits of this teacher, got another's"):
        CachedTeacher(llama(1), path, top=6, temperature=1.0)
    CachedTeacher(model, tmp_path / "whole")(batch["input_ids"])
    with pytest.raises(SlimfastError, match="got a file of whole ones"):
        CachedTeacher(model, tmp_path / "whole", top=6)
    (tmp_path / "text").write_bytes(b"something else")
    with pytest.raises(SlimfastError, match="expected top logits of slimfast, got another file"):
        CachedTeacher(model, tmp_path / "text", top=6)


def test_what_cannot_be_kept_is_refused_in_one_line(tmp_path: Path) -> None:
    small = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(TypeError, match="causal language model for top=, got BertForMaskedLM"):
        CachedTeacher(BertForMaskedLM(small), tmp_path / "a", top=2)
    with pytest.raises(ValueError, match="top of at least 1, got 0"):
        CachedTeacher(llama(), tmp_path / "a", top=0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        CachedTeacher(llama(), tmp_path / "a", top=2, temperature=-1)
    with pytest.raises(ValueError, match=r"top of at most 40, the teacher's tokens, got 41"):
        CachedTeacher(llama(), tmp_path / "a", top=41)(**padded(texts(5), 5))
    with pytest.raises(SlimfastError, match=r"logits \(samples, positions, tokens\) for top=, got \(3, 2\)"):
        CachedTeacher(nn.Linear(4, 2), tmp_path / "a", top=2)(torch.ones(3, 4))
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    with pytest.raises(SlimfastError, match="logits that are numbers"):
        CachedTeacher(broken, tmp_path / "a", top=2)(**padded(texts(5), 5))
    assert not (tmp_path / "a").exists()


def test_a_top_that_says_little_is_warned_of_once(tmp_path: Path) -> None:
    cached = CachedTeacher(llama(), tmp_path / "top", top=1, temperature=50.0)
    with pytest.warns(UserWarning, match=r"the top 1 tokens have \d+% of the probability at temperature 50"):
        cached(**padded(texts(5), 5))
    cached(**padded(texts(6, seed=4), 6))


def test_a_training_towards_every_token_is_that_towards_the_teacher(tmp_path: Path) -> None:
    teacher, rows = llama(), texts(5, 9, 7, 6, 8, 4)
    batches = []
    for start, width in ((0, 9), (2, 7), (4, 10)):
        batch = padded(rows[start : start + 2], width)
        batches.append(
            {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        )
    loss = DistillationLoss(temperature=1.0)
    ends = []
    for used in (teacher, CachedTeacher(teacher, tmp_path / "top", top=VOCABULARY, temperature=1.0)):
        student = llama(5)
        history = distill(
            student,
            teacher=used,
            train=batches,
            epochs=2,
            lr=1e-3,
            optimizer="adamw",
            loss=loss,
            progress=False,
        )
        ends.append(
            (history.epochs[-1].loss, torch.cat([p.detach().flatten() for p in student.parameters()]))
        )
    # Values of 16 bits round a probability by 2^-11 of its logarithm.
    assert ends[0][0] == pytest.approx(ends[1][0], rel=2e-3)
    assert torch.allclose(ends[0][1], ends[1][1], atol=1e-4)


def test_a_training_towards_few_tokens_brings_the_student_near_the_teacher(tmp_path: Path) -> None:
    teacher, student = llama(), copy.deepcopy(llama())
    rows = torch.stack(texts(*[12] * 24))
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    before = slimfast.perplexity(student, [rows[:8]])
    cached = CachedTeacher(teacher, tmp_path / "top", top=8, temperature=1.0)
    batches = [{"input_ids": part} for part in rows.split(8)]

    def distance() -> float:
        with torch.no_grad():
            outputs = [model(input_ids=rows).logits for model in (student, teacher)]
            return soft_target_loss(*outputs, temperature=1.0).item()

    start = distance()
    distill(
        student,
        teacher=cached,
        train=batches,
        epochs=4,
        lr=1e-3,
        optimizer="adamw",
        loss=DistillationLoss(temperature=1.0, hard=0),
        progress=False,
    )
    assert before > 1
    assert distance() < start / 2


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (DistillationLoss(temperature=2.0), "expected temperature=1, at which"),
        (DistillationLoss(temperature=1.0, correlation=1.0), "correlation needs whole logits"),
    ],
)
def test_losses_that_want_more_are_refused_before_the_first_step(
    tmp_path: Path, loss: DistillationLoss, message: str
) -> None:
    cached = CachedTeacher(llama(), tmp_path / "top", top=8, temperature=1.0)
    batch = {"input_ids": torch.stack(texts(6, 6))}
    with pytest.raises(ValueError, match=message):
        distill(
            llama(1),
            teacher=cached,
            train=[{**batch, "labels": batch["input_ids"]}],
            loss=loss,
            progress=False,
        )
