"""Groups cut alone, as data, a table and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from slimfast.errors import printable
from slimfast.studies.scoring import rank_agreement

KIND = "slimfast.sensitivities"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CutAlone:
    """What one group, cut alone, does to the network.

    Attributes:
        group: Its name.
        kind: What its units are.
        n: How many it has.
        width: How many stay.
        predicted: The error of the output by the group's error curve, in the unit that the curves share, or
            the share of its variance that this width does not explain; None where neither is known.
        error: The root mean square of what changed in the output, as a share of that of the output.
        score: What ``evaluate`` gave.

    Example:
        worst = max(found.cuts, key=lambda cut: cut.error)
    """

    group: str
    kind: str
    n: int
    width: int
    predicted: float | None
    error: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Groups cut alone to a few shares of their units.

    Attributes:
        cuts: Each group at each share, in the order of the groups.
        shares: The shares.
        predicted_by: What the prediction is from: "error curves" or "explained variance".
        score: That of the network as it is; None without ``evaluate``.

    Example:
        print(slimfast.sensitivity(model, example))
    """

    cuts: tuple[CutAlone, ...]
    shares: tuple[float, ...]
    predicted_by: str
    score: float | None = None

    def agreement(self) -> float | None:
        """Compute the rank correlation (Spearman's) of predicted and measured errors; None where there is no
        order.
        """
        known = [(c.predicted, c.error) for c in self.cuts if c.predicted is not None and c.width < c.n]
        return rank_agreement([p for p, _ in known], [e for _, e in known])

    def __str__(self) -> str:
        lines = [f"{'width':>12} {'predicted':>10} {'error':>10} {'score':>10}"]
        name = None
        for cut in self.cuts:
            if cut.group != name:
                name = cut.group
                lines.append(name)
            predicted = "-" if cut.predicted is None else f"{cut.predicted:.4g}"
            score = "-" if cut.score is None else f"{cut.score:.4f}"
            lines.append(f"{f'{cut.n} -> {cut.width}':>12} {predicted:>10} {cut.error:>10.4f} {score:>10}")
        lines.append(f"predicted by {self.predicted_by}; error: change of the output as a share of it")
        if self.score is not None:
            lines.append(f"score of the whole network: {self.score:.4f}")
        agreement = self.agreement()
        if agreement is not None:
            lines.append(f"predicted and measured errors agree in order: {agreement:.2f} (Spearman)")
        return "\n".join(map(printable, lines))

    def to_json(self) -> str:
        """Write a JSON document."""
        document = {
            "kind": KIND,
            "schema": SCHEMA,
            "predicted_by": self.predicted_by,
            "shares": list(self.shares),
            "score": self.score,
            "agreement": self.agreement(),
            "cuts": [asdict(cut) for cut in self.cuts],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"
