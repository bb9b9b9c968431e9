"""Rounds inside the trainings of other packages: Hugging Face's Trainer, Lightning."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import slimfast
from slimfast.errors import SlimfastError


def tiny_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def sentences(n=32, length=12):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 64, (n, length), generator=generator)
    labels = tokens[:, 1] % 3
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": y}
            for t, y in zip(tokens, labels, strict=True)]  # fmt: skip


def trained(model, tmp_path, callbacks, steps=9):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = transformers.Trainer(model, settings, train_dataset=sentences(), callbacks=callbacks)
    trainer.train()
    return trainer


EXAMPLE = {name: torch.stack([s[name] for s in sentences(2)]) for name in ("input_ids", "attention_mask")}


def test_a_trainer_goes_on_with_the_thin_network(tmp_path):
    model, cuts, seen = tiny_bert(), [], []
    wide = sum(p.numel() for p in model.parameters())

    def on_cut(cut):
        cuts.append(cut)
        seen.append({name: tensor.clone() for name, tensor in cut.model.state_dict().items()})

    calibration = [{name: s[name][None] for name in EXAMPLE} for s in sentences(8)]
    run = slimfast.rounds(
        model, EXAMPLE, params=0.6, within="bert.encoder*", rounds=2, calibration=calibration, in_place=True
    )
    trainer = trained(model, tmp_path, [slimfast.trainer_callback(run, steps=[3, 6], on_cut=on_cut)])
    assert [cut.number for cut in cuts] == [1, 2]
    assert trainer.model is model
    assert trainer.state.global_step == 9
    encoder = model.bert.encoder
    left = sum(p.numel() for p in encoder.parameters())
    assert left <= 0.6 * sum(p.numel() for p in tiny_bert().bert.encoder.parameters())
    # The optimizer has gone on with what is left, and moves it.
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    for name, tensor in model.state_dict().items():
        if name.endswith("intermediate.dense.weight"):
            assert tensor.shape == seen[1][name].shape != seen[0][name].shape
            assert not torch.equal(tensor, seen[1][name])
    # The schedule is that of all nine steps.
    assert trainer.lr_scheduler.last_epoch == 9
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    logged = [entry for entry in trainer.state.log_history if "slimfast/params" in entry]
    assert [entry["step"] for entry in logged] == [3, 6]
    assert wide > logged[0]["slimfast/params"] > logged[1]["slimfast/params"]
    assert logged[1]["slimfast/params"] == sum(p.numel() for p in model.parameters())
    slimfast.save(model, tmp_path / "thin.safetensors")
    loaded = slimfast.load(tmp_path / "thin.safetensors", tiny_bert()).eval()
    assert torch.equal(loaded(**EXAMPLE).logits, model.eval()(**EXAMPLE).logits)


def test_rounds_that_are_not_reached_are_not_cut(tmp_path):
    model = tiny_bert()
    run = slimfast.rounds(model, EXAMPLE, params=0.6, rounds=2, in_place=True)
    callback = slimfast.trainer_callback(run, steps=[2, 50])
    with pytest.warns(UserWarning, match=r"ended at step 4, before the rounds after \[50\]: 1 of 2 rounds"):
        trained(model, tmp_path, [callback], steps=4)
    assert len(run.plans) == 1


def test_lightning_tells_of_rounds_that_are_not_reached(recwarn):
    pytest.importorskip("lightning.pytorch")
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    run = slimfast.rounds(model, torch.zeros(2, 8), params=0.5, rounds=2, in_place=True)
    callback = slimfast.lightning_callback(run, steps=[1, 3])
    with pytest.warns(UserWarning, match=r"before the rounds after \[1, 3\]: 0 of 2 rounds were cut"):
        callback.on_train_end(SimpleNamespace(global_step=0), model)
    for _ in run:
        pass
    recwarn.clear()
    callback.on_train_end(SimpleNamespace(global_step=3), model)
    assert not recwarn


def test_a_callback_wants_rounds_in_place_and_a_step_for_each():
    model = tiny_bert()
    apart = slimfast.rounds(model, EXAMPLE, params=0.6, rounds=2)
    with pytest.raises(ValueError, match="in_place=True"):
        slimfast.trainer_callback(apart, steps=[1, 2])
    run = slimfast.rounds(model, EXAMPLE, params=0.6, rounds=2, in_place=True)
    for steps in ([5], [0, 5], [5, 5], []):
        with pytest.raises(ValueError, match="for each of the 2 rounds"):
            slimfast.trainer_callback(run, steps=steps)
    with pytest.raises(TypeError, match=r"slimfast\.rounds"):
        slimfast.trainer_callback(model, steps=[1, 2])


def test_several_processes_are_refused():
    from transformers import TrainerControl, TrainerState

    class Settings:
        world_size = 2

    model = tiny_bert()
    run = slimfast.rounds(model, EXAMPLE, params=0.6, rounds=1, in_place=True)
    callback = slimfast.trainer_callback(run, steps=[1])
    with pytest.raises(SlimfastError, match="one process"):
        callback.on_step_end(Settings(), TrainerState(global_step=1), TrainerControl(), optimizer=None)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*num_workers")
def test_lightning_goes_on_with_the_thin_network(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
            )

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Module()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.argmax(1) % 3), batch_size=8)
    run = slimfast.rounds(module.network, x[:2], macs=0.5, rounds=2, calibration=[x[:16]], in_place=True)
    at, held = [], module.network
    trainer = lightning.Trainer(
        max_steps=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[slimfast.lightning_callback(run, steps=[2, 5], on_cut=lambda cut: at.append(cut.number))],
    )
    trainer.fit(module, data)
    assert at == [1, 2]
    assert module.network is held
    wide = sum(p.numel() for p in Module().parameters())
    assert sum(p.numel() for p in module.parameters()) < 0.6 * wide
    optimizer = trainer.optimizers[0]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in module.parameters()
    }
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**8)
    assert trainer.callback_metrics["slimfast/round"] == 2


@pytest.mark.parametrize(
    ("make", "package"),
    [(slimfast.trainer_callback, "transformers"), (slimfast.lightning_callback, "lightning")],
)
def test_a_missing_package_is_named(monkeypatch, make, package):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    run = slimfast.rounds(model, torch.zeros(1, 4), params=0.5, rounds=1, in_place=True)
    for name in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SlimfastError, match=f"{package} is not installed"):
        make(run, steps=[1])
