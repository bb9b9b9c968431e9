"""The tables of the one-shot study: all rows, what did not help, and the most telling of all networks."""

from __future__ import annotations

from benchmarks.markdown import NOT_MEASURED, NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at

_ALIKE, PAPER = "marginal gain, shares of activations", "explained variance (paper)"
OURS = "marginal gain, activations"
LOST = (
    (
        "every consumer counted alike",
        (_ALIKE, "activations", "activations"),
        "by deviations of the output",
        (OURS, "activations", "activations"),
    ),
    (
        "by variances of the output",
        ("marginal gain, squares", "activations", "activations"),
        "by deviations of the output",
        (OURS, "activations", "activations"),
    ),
    *(
        (f"{name}, one tau", (name, "l1", "activations"), "the paper's", (PAPER, "l1", "activations"))
        for name in ("folded batch norm", "unit scaling", "noise corrected")
    ),
    (
        "activation spectra, one tau",
        ("activation spectra", "activations", "activations"),
        "the paper's",
        (PAPER, "activations", "activations"),
    ),
    (
        "gain on weights' spectra",
        ("marginal gain, weights", "l1", None),
        "on activations",
        (_ALIKE, "l1", None),
    ),
    (
        "units by activations, after repair",
        (_ALIKE, "activations", "activations"),
        "by L1",
        (_ALIKE, "l1", "activations"),
    ),
    ("weights' repair, uniform", ("uniform", "l1", "weights"), "no repair", ("uniform", "l1", None)),
    (
        "weights' repair, marginal gain",
        (_ALIKE, "activations", "weights"),
        "from activations",
        (_ALIKE, "activations", "activations"),
    ),
)
"""What was tried, and what it is compared with: (allocation, selection, repair) of each."""
TELLING = (
    (OURS, "activations", "activations"),
    (OURS, "lookahead", "activations"),
    (OURS, "activations", None),
    (PAPER, "l1", "activations"),
    (PAPER, "l1", None),
    ("noise null", "l1", "activations"),
    ("uniform", "activations", "activations"),
    ("uniform", "l1", "activations"),
    ("uniform", "l1", None),
    ("group magnitude, global", "its own", "activations"),
    ("group magnitude, global", "its own", None),
    ("random widths", "l1", "activations"),
)
"""The rows of the table of all networks, in this order."""


def table(result: Result) -> str:
    """Per share of the MACs: widths by units and repair, the best first; test accuracy."""
    if not result:
        return f"{NOT_YET}\n"
    rows = sorted(result["rows"], key=lambda row: (-row["share"], -row["test"]))
    lines = [
        ["MACs", "widths", "units", "repair", "test accuracy", "parameters", "MACs reached"],
        ["--:", "---", "---", "---", "--:", "--:", "--:"],
    ]
    whole = result["dense"]
    lines.append(["1", "original", "", "", f"{100 * whole['test']:.2f} %", f"{whole['params']:,}", "1"])
    for row in rows:
        name = f"{row['allocation']}{' (control)' if row['control'] else ''}"
        lines.append(
            [
                f"{row['share']:g}",
                name,
                row["select"],
                row["repair"] or "none",
                f"{100 * row['test']:.2f} %",
                f"{row['params']:,}",
                f"{row['macs'] / whole['macs']:.4f}",
            ]
        )
    settings = result["settings"]
    noise = ", ".join(
        f"{found['squared_correlation']:.2f} at {found['share']:g} (tau {found['tau']:.3f}, of noise "
        f"{found['tau_of_noise']:.3f})"
        for found in result.get("profile", ())
    )
    return (
        f"{rows_of(lines)}\n\nSquared correlation of the paper's kept shares with those of noise of the same "
        f"shapes: {noise or NOT_MEASURED}.\n\n{settings['network']}, no training; "
        f"{settings['calibration_images']} training images calibrate, {settings['test_images']:,} test "
        f"images, each network run once; {made_at(result)}.\n"
    )


def lost(result: Result) -> str:
    """What was tried against the default and the paper's rule, and what it cost, from a one-shot result.

    Each row differs from the one it is compared with in a single thing, at the same share of the MACs.
    """
    found = {
        tuple(row[key] for key in ("allocation", "select", "repair")): 100 * row["test"]
        for row in result.get("rows", ())
        if row["share"] == 0.5
    }
    lines = [["tried", "", "instead", "", "difference"], ["---", "--:", "---", "--:", "--:"]]
    for what, key, instead, other in LOST:
        if key in found and other in found:
            one, two = found[key], found[other]
            lines.append([what, f"{one:.2f} %", instead, f"{two:.2f} %", f"{one - two:+.2f}"])
    if not result:
        return f"{rows_of(lines)}\n\n{NOT_YET}\n"
    settings = result["settings"]
    return (
        f"{rows_of(lines)}\n\n{settings['network']} at half its MACs, no training, rows of the table of all; "
        f"{settings['test_images']:,} test images.\n"
    )


def brief(*networks: Result) -> str:
    """Of several networks, the most telling rows, a column for each network and share; test accuracy."""
    results = [result for result in networks if result]
    columns = [
        (result, share) for result in results for share in sorted({r["share"] for r in result["rows"]})[::-1]
    ]
    heads = [f"{result['settings']['network']}, {share:g}" for result, share in columns]
    whole = [f"{100 * result['dense']['test']:.2f} %" for result, _ in columns]
    lines = [
        ["widths", "units", "repair", *heads],
        ["---", "---", "---", *["--:"] * len(columns)],
        ["original", "", "", *whole],
    ]
    controls = {r["allocation"] for result in results for r in result["rows"] if r["control"]}
    for key in TELLING:
        cells = []
        for result, share in columns:
            found = [
                row["test"]
                for row in result["rows"]
                if (row["allocation"], row["select"], row["repair"], row["share"]) == (*key, share)
            ]
            cells.append(f"{100 * found[0]:.2f} %" if found else NOT_MEASURED)
        name, units, repair = key
        mark = " (control)" if name in controls else ""
        lines.append([f"{name}{mark}", units, repair or "none", *cells])
    images = ", ".join(f"{r['settings']['network']} {r['settings']['test_images']:,}" for r in results)
    where = f"No training; share of the MACs kept; test images: {images}." if results else NOT_YET
    return f"{rows_of(lines)}\n\n{where}\n"


TABLES = (
    Table("accuracy-oneshot-*", ("oneshot-*.json",), table),
    Table("accuracy-lost-oneshot-*", ("oneshot-*.json",), lost),
    Table(
        "accuracy-brief-oneshot",
        tuple(f"oneshot-{network}-telling.json" for network in ("resnet56", "resnet20", "vgg16_bn")),
        brief,
    ),
)
