"""``sweep``, ``report`` and ``--report``: trade-offs and reports in the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli_cases import NET, NETS, needs
from support.synthetic_device import Device

import slimfast
from slimfast.cli import main
from slimfast.cli.models import build_model
from slimfast.plans import Plan

pytestmark = pytest.mark.usefixtures("workshop")


@pytest.fixture
def network(weights: str) -> list[str]:
    return [NET, "--weights", weights]


def test_sweep_prints_and_writes_every_point(network, capsys) -> None:
    arguments = ["sweep", *network, "--input", "3x6x6", "--budgets", "0.8,50%", "--multiple-of", "2"]
    assert main([*arguments, "-o", "sweep.json"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["0.8", "0.5"]
    written = json.loads(Path("sweep.json").read_text())
    assert [point["amount"] for point in written["points"]] == [0.8, 0.5]
    assert all(width % 2 == 0 for point in written["points"] for width in point["widths"].values())
    plan = ["plan", *network, "--input", "3x6x6", "--macs", "0.5", "--multiple-of", "2", "--json"]
    assert main(plan) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == written["points"][1]["widths"]
    assert main([*arguments, "--json", "--no-uniform"]) == 0
    assert "uniform" not in json.loads(capsys.readouterr().out)["points"][0]


@needs("matplotlib")
@needs("plotly")
def test_sweep_draws_and_reports(network, capsys) -> None:
    arguments = ["sweep", *network, "--input", "3x6x6", "--budgets", "0.8,0.6,0.4", "--sensitivities"]
    assert main([*arguments, "--plot", "sweep.svg", "--report", "sweep.html"]) == 0
    found = capsys.readouterr()
    assert "agree in order" in found.out
    assert "wrote sweep.svg, sweep.html" in found.err
    assert "<svg" in Path("sweep.svg").read_text()
    page = Path("sweep.html").read_text()
    for chart in ("widths", "curves", "costs", "trade-off", "sensitivities"):
        assert f'id="chart-{chart}"' in page


@needs("plotly")
def test_a_report_measures_once(network, monkeypatch, capsys) -> None:
    wanted = [*network, "--input", "3x6x6", "--macs", "0.5"]
    calls: list[str] = []

    def counted(name: str, function):
        def once(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return once

    places = ("cli.curves", "plans.planning", "cli.studying", "studies.trade_offs", "studies.sensitivities")
    for module in places:
        place = f"slimfast.{module}"
        monkeypatch.setattr(f"{place}.measure_spectra", counted("spectra", slimfast.measure_spectra))
        monkeypatch.setattr(f"{place}.error_curves", counted("curves", slimfast.error_curves))
    assert main(["slim", *wanted, "-o", "out", "--report", "slim.html"]) == 0
    assert calls == ["spectra"]
    data = ["--data", f"{NETS}:data"]
    assert main(["calibrate", *network, "--input", "3x6x6", *data, "-o", "c.safetensors"]) == 0
    for command in ("slim", "plan"):
        calls.clear()
        outcome = main(
            [
                command,
                *wanted,
                "--calibration",
                "c.safetensors",
                "-o",
                f"{command}-out.json",
                "--report",
                "r.html",
            ]
        )
        assert outcome == 0
        assert calls == ["curves"], command
    calls.clear()
    known = ["--input", "3x6x6", "--calibration", "c.safetensors", "--sensitivities"]
    studied = ["--budgets", "0.8,0.5", "--report", "s.html", "-o", "s.json"]
    assert main(["sweep", *network, *known, *studied]) == 0
    assert calls == ["curves"]
    calls.clear()
    told = ["report", *network[:1], "plan-out.json", *network[1:], *known[2:], "-o", "t.html"]
    assert main(told) == 0
    assert calls == ["curves"]
    capsys.readouterr()


def test_sweep_under_budgets_of_time_and_memory(network, capsys) -> None:
    model = build_model(NET, weights=Path(network[2]), seed=0)
    example = torch.zeros(1, 3, 6, 6, device="cpu")
    graph = slimfast.trace_channels(model, example)
    slimfast.latency_table(graph, model, example, measure=Device()).save("table.json")
    arguments = ["sweep", *network, "--input", "3x6x6", "--budgets", "0.8,0.5"]
    assert main([*arguments, "--budget", "latency", "--latency-table", "table.json", "-o", "time.json"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["budget", "time", "left"]
    for point in json.loads(Path("time.json").read_text())["points"]:
        assert point["latency"]["predicted"] <= point["amount"] * point["latency"]["before"] * (1 + 1e-9)
        assert point["uniform"]["widths"]
    assert main([*arguments, "--budget", "peak_memory", "-o", "memory.json"]) == 0
    for point in json.loads(Path("memory.json").read_text())["points"]:
        assert point["peak_memory"]["measured"] <= point["amount"] * point["peak_memory"]["before"]
        assert point["uniform"]["widths"]
    capsys.readouterr()
    assert main(["plan", *network, "--input", "3x6x6", "--peak-memory", "70%", "-o", "plan.json"]) == 0
    assert "peak memory: asked for 0.7" in capsys.readouterr().out
    assert Plan.load("plan.json").budget == {"peak_memory": 0.7}
    assert main(["plan", *network, "--input", "3x6x6", "--peak-memory", "0"]) != 0
    assert "expected peak_memory" in capsys.readouterr().err


@needs("plotly")
def test_plan_slim_and_report_write_the_same_page_of_a_plan(network, capsys) -> None:
    wanted = [*network, "--input", "3x6x6", "--macs", "0.5"]
    assert main(["plan", *wanted, "-o", "plan.json", "--report", "plan.html"]) == 0
    assert main(["report", NET, "plan.json", *network[1:], "-o", "again.html"]) == 0
    assert main(["slim", *wanted, "-o", "out", "--report", "slim.html"]) == 0
    pages = [Path(name).read_text() for name in ("plan.html", "again.html", "slim.html")]
    for page in pages:
        for chart in ("widths", "curves", "costs"):
            assert f'id="chart-{chart}"' in page
        assert "it is what the network returns" in page
    assert [page.partition('id="charts">')[2].partition("</script>")[0] for page in pages] == [
        pages[0].partition('id="charts">')[2].partition("</script>")[0]
    ] * 3
    assert ["compared with the masked original" in page for page in pages] == [False, False, True]
    capsys.readouterr()


@needs("plotly")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budgets", "0.5", "--budget", "time"], "expected budget to be one of macs, params"),
        (["--budgets", ""], "expected macs as a number"),
        (["--budgets", "0.5,-1"], "expected macs in (0, 1]"),
        (["--budgets", "0.5", "--exclude", "convv1"], "no group matches 'convv1'"),
        (["--report", "r.pdf"], "cannot write r.pdf: expected a name ending in .html, got .pdf"),
        (["-o", "sweep.txt"], "expected a name ending in .json, got .txt"),
    ],
)
def test_bad_input_is_one_line(network, capsys, arguments: list[str], said: str) -> None:
    assert main(["sweep", *network, "--input", "3x6x6", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_report_of_another_network_is_refused(network, capsys) -> None:
    pytest.importorskip("plotly")
    assert main(["plan", *network, "--input", "3x6x6", "--macs", "0.5", "-o", "plan.json"]) == 0
    document = Path("plan.json").read_text().replace('"conv1.weight": [8', '"conv1.weight": [9')
    Path("plan.json").write_text(document)
    assert main(["report", NET, "plan.json", *network[1:]]) == 2
    assert "plan: expected a model with conv1.weight of shape" in capsys.readouterr().err
    assert not Path("report.html").exists()
    assert torch.is_grad_enabled()
