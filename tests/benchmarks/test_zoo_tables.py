"""The tables of the zoo: what was done, what failed, what stays whole."""

from __future__ import annotations

from support.zoo_rows import STAMP, row

from benchmarks.zoo import networks, tables


def test_the_table_tells_what_was_done_and_what_failed():
    results = {
        "timm:resnet18": row(),
        "timm:vgg16_bn": row(
            train={"failed": "not finished in 120 s"}, count={"reached": 0.4, "prunable": 1.0}
        ),
    }
    results["timm:vgg16_bn"]["peer"]["run"] = {"failed": "RuntimeError: shapes `a` and `b`"}
    lines = tables.table("families", results).splitlines()
    assert lines[2] == (
        "| resnet18 | 7 | 99 % | 0.495 | yes | yes, 6 of 7 groups | yes | yes | not measured | 2.00 "
        "| 0.30 of it | 4.00 |"
    )
    assert lines[3].startswith("| resnext50_32x4d | not measured | not measured |")
    assert (
        "| 0.400 (far) | yes | yes, 6 of 7 groups | yes | **no** | not measured | 2.00 | error | 4.00 |"
        in lines[4]
    )
    text = "\n".join(lines[47:])
    assert (
        "Of 45 networks, 2 measured: traced 2, planned 2, pruned 2, within 2 % of the budget 1, run 2" in text
    )
    assert "trained 1" in text
    assert "made 1 of 2 at least 30 % smaller. slimfast was the faster for 1 of the 1 that" in text
    assert "- vgg16_bn, train: `not finished in 120 s`" in text
    assert "load 1.5 to 1.5" in text


def test_the_table_of_a_further_zoo_tells_of_sizes_and_training():
    names = networks.ZOOS["graphs"]
    takes_one = {"seconds": 0.5, "compared": 6, "inexact": 0, "other": [], "notes": [], "training": "no"}
    both = takes_one | {"other": [[3, 4]], "training": None}
    count = {"prunable": 0.5, "reached": 0.75, "whole": {"network output": 0.4, "a `b`": 0.1}}
    results = {
        names[0]: row(verify=both, count=count),
        names[1]: row(verify=takes_one),
        names[2]: row(verify={"failed": "SlimfastError: no"}),
    }
    lines = tables.further("graphs", results).splitlines()
    assert lines[2] == "| GCN | 7 | 50 % | 0.750 (far) | yes | yes | yes | yes | yes | 2.00 |"
    assert "| yes | none found | not compared | yes | yes | 2.00 |" in lines[3]
    assert "| **no** | - | - | yes | yes | 2.00 |" in lines[4]
    assert lines[5].count("not measured") == 9
    whole = tables.left_whole("graphs", results).splitlines()
    assert whole[2:] == ["| GCN | 40 % | `network output` |", "|  | 10 % | `a 'b'` |"]
    assert tables.left_whole("graphs", {}) == "Not measured yet.\n"


def test_a_network_of_which_only_the_weights_were_compared():
    made = row(verify={"seconds": 1.0, "compared": 0, "inexact": 4})
    text = tables.table("families", {"timm:resnet18": made})
    assert "| yes | weights only | yes |" in text
    assert "verified 1 (1 of them weights only), reloaded 1" in text


def test_an_early_failure_leaves_dashes():
    failed = {"build": {"seconds": 1.0}, "trace": {"failed": "UnsupportedGraph: no"}}
    made = {"limit_s": 1.0, "limit_gb": 1.0, "stamp": STAMP, "stages": failed}
    line = tables.table("families", {"timm:resnet18": made}).splitlines()[2]
    assert line == "| resnet18 | - | - | - | - | - | - | - | - | - | not measured | - |"


def test_where_the_time_goes_slowest_first():
    results = {
        "timm:resnet18": row(),
        "timm:vgg16_bn": row(spectra={"seconds": 2.5}, verify={"failed": "not finished in 120 s"}),
        "timm:densenet121": row(plan={"failed": "SlimfastError: no"}),
    }
    lines = tables.times("families", results).splitlines()
    assert lines[0] == "|  | trace | spectra | plan | prune | together | verify |"
    assert lines[2] == "| vgg16_bn | 0.50 | 2.50 | 0.50 | 0.50 | 4.00 | - |"
    assert lines[3] == "| resnet18 | 0.50 | 0.50 | 0.50 | 0.50 | 2.00 | 0.50 |"
    assert lines[4] == ""


def test_no_results_at_all():
    text = tables.table("transformers", {})
    assert text.count("| not measured |") > 0
    assert text.endswith("Not measured yet.\n")
