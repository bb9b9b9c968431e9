"""The commands that decide: ``spectra`` and ``plan``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.cli import console, options
from slimfast.cli.inputs import example_of, other_calls
from slimfast.cli.models import build
from slimfast.cli.option_groups import Widths, takes_groups
from slimfast.cli.plan_roads import Journey, road_of
from slimfast.cli.stored import is_weight_file
from slimfast.distributed.team import launched
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans.request import WidthOptions
from slimfast.reports.html import check_report
from slimfast.reports.html import report as write_report
from slimfast.reports.plots import TAUS, check_figure, plan_figure, save_figure, spectra_table
from slimfast.spectra import Spectrum, load_spectra, measure_spectra, save_spectra
from slimfast.storage.weights import Weights

Spectra = Annotated[
    Path | None,
    typer.Option(help="Spectra saved by 'slimfast spectra --input': nothing is measured again."),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Say what each group couples, and what is left alone and why.")
]
Plot = Annotated[Path | None, typer.Option(help="Picture of spectra and widths to write (.png, .pdf).")]
Uniform = Annotated[
    bool,
    typer.Option(
        "--uniform", help="Layers of a kind equally wide: for transformers, and 'prune --pretrained'."
    ),
]

FromMasks = Annotated[
    bool,
    typer.Option("--from-masks", help="Keep exactly the units that masks, zeros and dead scales leave."),
]


def spectra(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model as in 'plan', or a file of weights.")
    ],
    input: options.Inputs = None,
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    explained_variance: Annotated[
        list[float] | None, typer.Option(help="A share to show the widths for; repeat it for more.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    resume: options.Finished = None,
    stream: options.Stream = False,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much of a layer's variance its leading directions hold.

    With --input these are the model's channel groups, which 'plan --spectra' reads; without it, all tensors
    of two or more dims.
    """
    taus = tuple(explained_variance or TAUS)
    console.check_outputs(output, suffixes=(".safetensors",))
    source: Any = model
    graph = None
    if is_weight_file(model):
        console.refuse(
            f"{model}: a file of weights stands alone",
            {"input": input, "weights": weights, "random-weights": random_weights},
        )
    else:
        network, source = _network(model, weights, seed, device, stream=stream, random_weights=random_weights)
        example = example_of(input, network, model, seed=seed, device=device) if input else None
        graph = trace_channels(network, example) if input else None
    with console.progress("measuring spectra") as advance, options.team_if_launched() as team:
        found = measure_spectra(
            source, graph, taus=taus, backend=backend, progress=advance, resume=resume, team=team
        )
    if not options.is_first(team):
        return
    if output is not None:
        with console.output(output, ".safetensors") as path:
            save_spectra(found, path)
            _show_spectra(found, taus, as_json=as_json)
    else:
        _show_spectra(found, taus, as_json=as_json)
    console.tell_written(output)


def _show_spectra(found: dict[str, Spectrum], taus: tuple[float, ...], *, as_json: bool) -> None:
    if as_json:
        console.show_json({name: _to_json(spectrum, taus) for name, spectrum in found.items()})
    else:
        console.show(spectra_table(found, taus=taus))


@takes_groups
def plan(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    outputs: options.Outputs = None,
    also: options.Also = None,
    random_weights: options.RandomWeights = False,
    *,
    widths: Widths,
    spectra: Spectra = None,
    calibration: options.Calibration = None,
    explain: Explain = False,
    plot: Plot = None,
    report: options.Report = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    resume: options.Finished = None,
    stream: options.Stream = False,
    uniform: Uniform = False,
    from_masks: FromMasks = False,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Choose one width per channel group, so that a budget is met, or as the existing masks say."""
    given: dict[str, Any] = {"spectra": spectra, "calibration": calibration, "plot": plot, "report": report}
    given |= {"resume": resume, "stream": stream}
    if from_masks:
        _check_from_masks(widths, uniform=uniform, outputs=outputs, also=also, **given)
    wanted = WidthOptions() if from_masks else widths.request_options()
    if uniform:
        _check_uniform(widths, **given)
    if stream:
        _check_streamed(widths, calibrated=calibration is not None, plot=plot, report=report)
    console.check_outputs(output, suffixes=(".json",))
    check_figure(plot)
    check_report(report)
    road = road_of(
        widths, masks=from_masks, equal=uniform, calibrated=calibration is not None, streamed=stream
    )
    at_hand = None if spectra is None else load_spectra(spectra)
    network, source = _network(model, weights, seed, device, stream=stream, random_weights=random_weights)
    example = example_of(input, network, model, seed=seed, device=device)
    calls = other_calls(also, network, model, seed=seed, device=device)
    with console.progress("measuring spectra") as advance, options.team_if_launched() as team:
        found, curves = road(
            Journey(
                network=network,
                source=source,
                example=example,
                widths=widths,
                wanted=wanted,
                outputs=options.outputs_of(outputs),
                also=calls,
                calibration=calibration,
                spectra=at_hand,
                shown=plot is not None or report is not None,
                device=device,
                backend=backend,
                resume=resume,
                progress=advance,
                team=team,
            )
        )
    if not options.is_first(team):
        return
    if plot is not None:
        save_figure(plan_figure(found, curves), plot)
    if report is not None:
        write_report(found, report, curves=curves, title=model)
    with console.output(output or Path(os.devnull), ".json") as path:
        if output is not None:
            found.save(path)
        print(found.to_json() if as_json else f"{found}\n", end="")
        if explain:
            print(f"\n{found.explain()}", file=sys.stderr if as_json else sys.stdout)
    console.tell_written(output, plot, report)


def _check_streamed(widths: Widths, *, calibrated: bool, plot: Path | None, report: Path | None) -> None:
    """Refuse what wants the network to run, or its curves, while the weights stay in their file."""
    if calibrated:
        console.refuse("--stream --calibration: expected a table", {"plot": plot, "report": report})
    if widths.latency is not None and widths.latency_table is None:
        raise SlimfastError(
            "--stream --latency: expected --latency-table, for the weights stay in their files"
        )
    if widths.peak_memory is not None:
        raise SlimfastError("--peak-memory: expected no --stream, for the network runs once")


def _check_uniform(widths: Widths, **others: Any) -> None:
    """Refuse what a uniform plan cannot heed."""
    others |= {"min-width": widths.min_width, "include": widths.include, "exclude": widths.exclude}
    others |= {"width": widths.width, "explained-variance": widths.explained_variance is not None}
    others |= {"within": widths.within}
    console.refuse("--uniform: expected --macs, --params, --latency, --peak-memory or --multiple-of", others)


def _check_from_masks(widths: Widths, **others: Any) -> None:
    """Refuse what a plan of masks cannot heed: they say which units stay, and so how many."""
    others |= {"macs": widths.macs, "params": widths.params, "within": widths.within, "width": widths.width}
    others |= {"explained-variance": widths.explained_variance is not None, "latency": widths.latency}
    others |= {"peak-memory": widths.peak_memory is not None}
    others |= {"multiple-of": widths.multiple_of, "min-width": widths.min_width}
    console.refuse("--from-masks: expected --include or --exclude", others)


def _network(
    model: str, weights: Path | None, seed: int, device: str, *, stream: bool, random_weights: bool
) -> tuple[nn.Module, nn.Module | Weights]:
    """Build the model, and say where its weights are to be read from: itself, or the file where they stay."""
    if device == "cuda" and launched():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if not stream:
        built = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights)
        return built.model, built.model
    return options.on_meta_device(model, weights, seed, device)


def _to_json(spectrum: Spectrum, taus: tuple[float, ...]) -> dict[str, Any]:
    return {
        "n": spectrum.n,
        "d": spectrum.d,
        "dtype": spectrum.dtype,
        "effective_rank": spectrum.effective_rank(),
        "widths": [
            {
                "explained_variance": tau,
                "width": spectrum.width(explained_variance=tau),
                "certified": spectrum.certified(explained_variance=tau),
            }
            for tau in taus
        ],
    }
