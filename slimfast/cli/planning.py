"""The commands that decide: ``spectra`` and ``plan``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.calibration.files import load_calibration
from slimfast.checkpoints.shards import plan_checkpoint
from slimfast.cli import options
from slimfast.cli.models import build_model, default_inputs, is_weight_file, parse_inputs
from slimfast.cli.option_groups import Widths, takes_groups
from slimfast.distributed.team import launched
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.huggingface.uniform import plan_uniform
from slimfast.plans import plan as make_plan
from slimfast.reports.plots import TAUS, plan_figure, save_figure, spectra_table
from slimfast.spectra import Spectrum, load_spectra, measure_spectra, save_spectra

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


def spectra(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model as in 'plan', or a file of weights.")
    ],
    input: options.Inputs = None,
    weights: options.Weights = None,
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
    options.check_outputs(output)
    source: Any = model
    graph = None
    if is_weight_file(model):
        if input or weights:
            raise SlimfastError(f"{model}: a file of weights takes neither --input nor --weights")
    else:
        network, source = _network(model, weights, seed, device, stream=stream)
        graph = trace_channels(network, parse_inputs(input, seed=seed, device=device)) if input else None
    with options.progress("measuring spectra") as advance, options.team_if_launched() as team:
        found = measure_spectra(
            source, graph, taus=taus, backend=backend, progress=advance, resume=resume, team=team
        )
    if not options.is_first(team):
        return
    if output is not None:
        save_spectra(found, output)
    if as_json:
        options.show_json({name: _to_json(spectrum, taus) for name, spectrum in found.items()})
    else:
        options.show(spectra_table(found, taus=taus))
    options.tell_written(output)


@takes_groups
def plan(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    outputs: options.Outputs = None,
    *,
    widths: Widths,
    spectra: Spectra = None,
    calibration: options.Calibration = None,
    explain: Explain = False,
    plot: Plot = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    resume: options.Finished = None,
    stream: options.Stream = False,
    uniform: Uniform = False,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Choose one width per channel group, so that a budget is met."""
    wanted = widths.request_options()
    if uniform:
        _check_uniform(
            widths,
            spectra=spectra,
            calibration=calibration,
            plot=plot,
            resume=resume,
            stream=stream,
            outputs=outputs,
        )
    options.check_outputs(output, plot)
    measured = None if spectra is None else load_spectra(spectra)
    network, source = _network(model, weights, seed, device, stream=stream)
    example = parse_inputs(input or default_inputs(network, model), seed=seed, device=device)
    how: dict[str, Any] = {"backend": backend, "resume": resume}
    interface = options.outputs_of(outputs)
    with options.progress("measuring spectra") as advance, options.team_if_launched() as team:
        how |= {"progress": advance, "team": team}
        if plot is not None and measured is None:
            measured = measure_spectra(source, trace_channels(network, example, outputs=interface), **how)
        if uniform:
            found = plan_uniform(
                network,
                example,
                macs=widths.macs,
                params=widths.params,
                multiple_of=widths.multiple_of,
                backend=backend,
            )
        elif calibration is None:
            found = plan_checkpoint(
                source, network, example, outputs=interface, spectra=measured, **how, **wanted
            )
        else:
            data = load_calibration(calibration, device=device)
            found = make_plan(
                network, example, outputs=interface, calibration=data, backend=backend, **wanted
            )
    if not options.is_first(team):
        return
    if output is not None:
        found.save(output)
    if plot is not None and measured is not None:
        save_figure(plan_figure(found, measured), plot)
    if as_json:
        print(found.to_json(), end="")
    else:
        print(found)
    if explain:
        print(f"\n{found.explain()}", file=sys.stderr if as_json else sys.stdout)
    options.tell_written(output, plot)


def _check_uniform(widths: Widths, **others: Any) -> None:
    """Refuse what a uniform plan cannot heed."""
    others |= {"min-width": widths.min_width > 1, "include": widths.include, "exclude": widths.exclude}
    others |= {"width": widths.width, "explained-variance": widths.explained_variance is not None}
    options.refuse("--uniform: expected --macs, --params or --multiple-of", others)


def _network(
    model: str, weights: Path | None, seed: int, device: str, *, stream: bool
) -> tuple[nn.Module, nn.Module | Path]:
    """Build the model, and say where its weights are to be read from: itself, or the file where they stay."""
    if device == "cuda" and launched():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if not stream:
        network = build_model(model, weights=weights, seed=seed, device=device)
        return network, network
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
