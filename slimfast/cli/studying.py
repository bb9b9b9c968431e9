"""The commands that look before and after: ``sweep`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.calibration import Calibration, ErrorCurve, error_curves
from slimfast.calibration.folders import load_calibration
from slimfast.cli import console, options
from slimfast.cli.inputs import example_of, other_calls
from slimfast.cli.models import build
from slimfast.cli.option_groups import Batches, Narrowing, takes_groups
from slimfast.cli.training import score_of
from slimfast.errors import SlimfastError
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.plans import Plan
from slimfast.pruning.plan_graph import graph_of
from slimfast.reports.figures import report_figures
from slimfast.reports.html import check_report
from slimfast.reports.html import report as write_report
from slimfast.reports.plots import check_figure, save_figure
from slimfast.spectra import load_spectra, measure_spectra
from slimfast.studies import sensitivity, trade_off
from slimfast.studies.trade_offs import BUDGETS

Spectra = Annotated[Path | None, typer.Option(help="Spectra saved by 'slimfast spectra --input'.")]
Budgets = Annotated[
    str,
    typer.Option(metavar="NUMBER,...", help="The budgets: shares (0.5, 50%) or numbers (2e9, 2G)."),
]
Limited = Annotated[str, typer.Option(help="What they limit: macs, params, latency or peak_memory.")]
Scored = Annotated[
    str | None,
    typer.Option("--data", help=f"Score every plan before any training. {options.DATA_HELP}"),
]
Sensitive = Annotated[
    bool, typer.Option("--sensitivities", help="Also cut one group at a time, and measure the output.")
]

_DEFAULT = ",".join(map(str, BUDGETS))


@takes_groups
def sweep(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    outputs: options.Outputs = None,
    also: options.Also = None,
    random_weights: options.RandomWeights = False,
    *,
    budgets: Budgets = _DEFAULT,
    budget: Limited = "macs",
    narrowing: Narrowing,
    uniform: Annotated[bool, typer.Option(help="With equal shares of all groups as a yardstick.")] = True,
    spectra: Spectra = None,
    calibration: options.Calibration = None,
    data: Scored = None,
    batches: Batches,
    sensitivities: Sensitive = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of the trade-off to write (.png, .svg).")] = None,
    report: options.Report = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Plan for several budgets from one measurement: what each loses, beside equal shares, and the knee."""
    console.check_outputs(output, suffixes=(".json",))
    check_figure(plot)
    check_report(report)
    network = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights).model
    example = example_of(input, network, model, seed=seed, device=device)
    scores = None if data is None else batches.load(data, network, example, seed=seed).for_scores()
    graph = trace_channels(
        network,
        example,
        outputs=options.outputs_of(outputs),
        also=other_calls(also, network, model, seed=seed, device=device),
    )
    measured = None if calibration is None else load_calibration(calibration, device=device)
    known = None if spectra is None else load_spectra(spectra)
    if measured is None and known is None:
        with console.progress("measuring spectra") as advance:
            known = measure_spectra(network, graph, backend=backend, progress=advance)
    curves = _curves(network, graph, measured, backend)
    how: dict[str, Any] = {"calibration": measured, "spectra": known, "curves": curves, "backend": backend}
    with console.progress("planning") as advance:
        found = trade_off(
            network,
            example,
            graph=graph,
            budgets=budgets.split(","),
            budget=budget,
            uniform=uniform,
            evaluate=None if scores is None else lambda thin: score_of(thin, scores),
            progress=advance,
            **how,
            **narrowing.keywords(),
        )
    alone = None
    if sensitivities:
        with console.progress("cutting one group at a time") as advance:
            alone = sensitivity(network, example, graph=graph, progress=advance, **how)
    if plot is not None:
        save_figure(report_figures(trade_off=found)["trade-off"], plot)
    if report is not None:
        plan = (found.knee() or found.points[-1]).plan
        drawn = curves or known or {}
        write_report(plan, report, curves=drawn, trade_off=found, sensitivities=alone, title=model)
    if output is not None:
        with console.output(output, ".json") as path:
            path.write_text(found.to_json(), encoding="utf-8")
    print(found.to_json() if as_json else f"{found}\n", end="")
    if alone is not None and not as_json:
        print(f"\n{alone}")
    console.tell_written(output, plot, report)


def report(
    model: options.Model,
    plan: Annotated[Path, typer.Argument(help="A plan of this model, as 'slimfast plan' writes it.")],
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    spectra: Spectra = None,
    calibration: options.Calibration = None,
    sensitivities: Sensitive = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
) -> None:
    """Write a report of a plan that one looks at: one HTML file, which opens without a network."""
    check_report(output)
    found = Plan.load(plan)
    network = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights).model
    graph = graph_of(network, found)
    measured = None if calibration is None else load_calibration(calibration, device=device)
    if found.allocation == "marginal_gain" and measured is None:
        raise SlimfastError("report: expected --calibration, for a plan by marginal gain, got none")
    known = None if spectra is None else load_spectra(spectra)
    if found.allocation != "marginal_gain" and known is None:
        with console.progress("measuring spectra") as advance:
            known = measure_spectra(network, graph, backend=backend, progress=advance)
    by_gain = found.allocation == "marginal_gain"
    curves = _curves(network, graph, measured if by_gain or sensitivities else None, backend)
    how: dict[str, Any] = {"calibration": measured, "spectra": known, "curves": curves, "backend": backend}
    alone = None
    if sensitivities:
        with console.progress("cutting one group at a time") as advance:
            alone = sensitivity(network, graph=graph, progress=advance, **how)
    drawn = (curves if by_gain else known) or {}
    write_report(found, output, curves=drawn, sensitivities=alone, graph=graph, title=model)
    console.tell_written(output)


def _curves(
    network: nn.Module, graph: ChannelGraph, calibration: Calibration | None, backend: str
) -> Mapping[str, ErrorCurve] | None:
    """Measure the error curves of a calibration once, for all that is made of them."""
    if calibration is None:
        return None
    with console.progress("measuring error curves") as advance:
        return error_curves(network, graph, calibration, backend=backend, progress=advance)
