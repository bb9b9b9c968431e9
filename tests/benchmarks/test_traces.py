"""What the timing of traces tells, and the table made of it."""

from __future__ import annotations

import torch

from benchmarks.zoo import traces


def test_a_trace_tells_its_forwards_and_what_it_found(monkeypatch):
    class Small(traces.Dense):
        """A class of its own: its forward is counted from then on."""

    monkeypatch.setattr(traces, "NETWORKS", {"small": lambda: (Small(3), torch.randn(1, 8))})
    told = {}
    traces.trace("small", lambda stage, facts: told.__setitem__(stage, facts))
    assert told["build"] is None
    assert told["trace"]["groups"] == 3
    # once as it is, and once more in training mode
    assert told["trace"]["forwards"] >= 2
    assert told["trace"]["operations"] >= 10


def test_the_table_has_what_failed_too():
    rows = {
        "one": {"trace": {"seconds": 1.25, "forwards": 4, "groups": 7, "operations": 90}},
        "two": {"trace": {"failed": "not finished in 300 s"}},
    }
    machine = {"cpu": "a CPU", "load": 0.5}
    made = {"machine": machine, "versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-01"}
    table = traces.table({"stamp": made, "networks": rows})
    assert "| one | 90 | 7 | 4 | 1.25 |" in table
    assert "| two | - | - | - | not finished in 300 s |" in table
    assert "a CPU, one thread, load 0.5" in table
    assert traces.table({}) == "Not measured yet.\n"
