"""Budgets of latency beside what thin networks take: ``python -m benchmarks.latency [--only GLOB ...]``.

For each network and batch a latency table is measured, the network planned for three shares of its time, and
each thin network measured beside the whole one, twice: what the table predicts, what is measured, and whether
that is inside the budget. The plan of half the multiply-adds is measured too, as it is. Rows that
``benchmarks/results/latency.json`` has are left as they are, unless ``--again``.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.networks.resnet_cifar import resnet56
from benchmarks.markdown import NOT_YET, Table, rows_of
from benchmarks.network_rows import RESULTS, measure_rows, origin, parser_of
from benchmarks.zoo.networks import build
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.recording.network import Network
from slimfast.latency import latency_table, measure_latency
from slimfast.latency.runtimes import Runtime
from slimfast.latency.tabulate import thin_network
from slimfast.plans import Plan, plan
from slimfast.spectra import measure_spectra

SHARES = (0.75, 0.5, 0.35)
BATCHES = (1, 16)
# A plan this close to its budget has used it.
CLOSE = 0.97
_TOKENS = 128

Built = tuple[nn.Module, Any]


def _image(name: str) -> Callable[[int], Built]:
    def make(batch: int) -> Built:
        return build(f"timm:{name}")[0], torch.randn(batch, 3, 224, 224)

    return make


def _resnet56(batch: int) -> Built:
    return resnet56(), torch.randn(batch, 3, 32, 32)


def _transformer(name: str, config: str, **options: Any) -> Callable[[int], Built]:
    def make(batch: int) -> Built:
        transformers = importlib.import_module("transformers")
        model = getattr(transformers, name)(getattr(transformers, config)(**options))
        return model, {"input_ids": torch.randint(0, 1000, (batch, _TOKENS))}

    return make


NETWORKS: Mapping[str, Callable[[int], Built]] = {
    "resnet18": _image("resnet18"),
    "resnet50": _image("resnet50"),
    "mobilenetv3": _image("mobilenetv3_large_100"),
    "efficientnet_b0": _image("efficientnet_b0"),
    "regnety_008": _image("regnety_008"),
    "convnext_tiny": _image("convnext_tiny"),
    "densenet121": _image("densenet121"),
    "vit_tiny": _image("vit_tiny_patch16_224"),
    "swin_tiny": _image("swin_tiny_patch4_window7_224"),
    "ResNet-56": _resnet56,
    "MiniLM": _transformer(
        "BertModel", "BertConfig", hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536,
    ),
    "Llama, 4 layers": _transformer(
        "LlamaModel", "LlamaConfig", hidden_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, intermediate_size=1408, vocab_size=1000, use_cache=False,
    ),
}  # fmt: skip


def measured(name: str, batch: int, threads: int, runtime: Runtime) -> dict[str, Any]:
    """Measure the table of a network, and thin networks of three budgets and of half the multiply-adds."""
    torch.manual_seed(0)
    model, example = NETWORKS[name](batch)
    model.eval()
    begun = time.monotonic()
    graph = trace_channels(model, example)
    traced = time.monotonic()
    table = latency_table(graph, model, example, threads=threads, runtime=runtime)
    row: dict[str, Any] = {"table_s": round(time.monotonic() - traced, 1), "budgets": {}}
    spectra = measure_spectra(model, graph)
    priced = table.priced(graph)
    network = Network.of(model)

    def tried(**budget: Any) -> tuple[Plan, float, dict[str, Any]]:
        found = plan(model, example, graph=graph, spectra=spectra, latency_table=table, **budget)
        networks = [model, thin_network(network, graph, found.widths())]
        (whole, cut), (whole_again, cut_again) = (
            measure_latency(networks, example, threads=threads, runtime=runtime) for _ in range(2)
        )
        told = {
            "measured": cut.share_of(whole),
            "again": cut_again.share_of(whole_again),
            "medians": [cut.seconds / whole.seconds, cut_again.seconds / whole_again.seconds],
            "macs": found.cost_after.macs / found.cost_before.macs,
        }
        return found, whole.seconds, told

    for share in SHARES:
        try:
            found, _, told = tried(latency=share)
        except SlimfastError as error:
            row["budgets"][str(share)] = {"failed": str(error)}
            continue
        predicted = table.predicted(graph, found.widths()) / priced.whole
        row["budgets"][str(share)] = {"predicted": predicted, **told}
    _, seconds, row["half"] = tried(macs=0.5)
    return row | {"seconds": seconds, "all_s": round(time.monotonic() - begun, 1)}


def errors_of(rows: Mapping[str, Any]) -> list[float]:
    """List how far each predicted share is from the measured one, as a share of that."""
    return [abs(told["predicted"] / told["measured"] - 1.0) for told in _told(rows)]


def repeats_of(rows: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """List how far two measurements of one thin network lie apart, as shares of the first: what is shown, and
    shares of medians.
    """
    told = [one for one in _told(rows) if "again" in one]
    shown = [abs(one["again"] / one["measured"] - 1.0) for one in told]
    return shown, [abs(one["medians"][1] / one["medians"][0] - 1.0) for one in told]


def _told(rows: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for row in rows.values():
        for share, told in row.get("budgets", {}).items():
            if "failed" not in told:
                yield {"share": float(share), **told}


def table_text(result: Mapping[str, Any]) -> str:
    """Show each network with its time, what was predicted and measured, and the half of its MACs."""
    rows = result.get("rows", {})
    if not rows:
        return f"{NOT_YET}\n"
    heads = [f"budget {share:g}" for share in SHARES]
    lines: list[Sequence[str]] = [
        ("", "whole, ms", *heads, "half the MACs", "table, s"),
        ["---", *["--:"] * (len(SHARES) + 3)],
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, row["failed"], *[""] * (len(SHARES) + 2)])
            continue
        cells = [_cell(row["budgets"].get(str(share), {})) for share in SHARES]
        half = f"{row['half']['measured']:.3f}"
        lines.append([name, f"{1e3 * row['seconds']:.2f}", *cells, half, f"{row['table_s']:.0f}"])
    errors = errors_of(rows)
    told = list(_told(rows))
    inside = sum(CLOSE * one["share"] <= one["measured"] <= one["share"] for one in told)
    summary = (
        f"Predicted / measured share of the whole network's time. Error of the prediction: median "
        f"{statistics.median(errors):.1%}, worst {max(errors):.1%}; measured within 3 % under the budget: "
        f"{inside} of {len(told)}. "
        if errors
        else ""
    )
    shown, medians = repeats_of(rows)
    if shown:
        summary += (
            f"Two measurements of the same networks differ by {statistics.median(shown):.1%} in the median "
            f"and {max(shown):.1%} at most, shares of medians by {statistics.median(medians):.1%} and "
            f"{max(medians):.1%}. "
        )
    return f"{rows_of(lines)}\n\n{summary}{origin(result)}.\n"


def _cell(told: Mapping[str, Any]) -> str:
    if "failed" in told:
        return "cannot be reached"
    return f"{told['predicted']:.3f} / {told['measured']:.3f}" if told else "-"


TABLES = (Table("latency*", ("latency*.json",), table_text),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the networks that are asked for, one after the other."""
    parser = parser_of("latency", __doc__, BATCHES)
    parser.add_argument("--threads", type=int, default=1, help="threads of a forward")
    parser.add_argument("--runtime", choices=("torch", "onnxruntime"), default="torch", help="what runs it")
    options = parser.parse_args(arguments)
    if options.runtime != "torch" and options.results == parser.get_default("results"):
        options.results = RESULTS / f"latency-{options.runtime}.json"

    def measure(name: str, batch: int) -> dict[str, Any]:
        return measured(name, batch, options.threads, options.runtime)

    measure_rows(options, NETWORKS, BATCHES, measure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
