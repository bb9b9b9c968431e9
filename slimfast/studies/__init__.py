"""Studies of a network before a decision: what each group alone costs the output, and what budgets buy."""

from slimfast.studies.sensitivities import CutAlone, Sensitivities, sensitivity
from slimfast.studies.trade_offs import Point, TradeOff, trade_off

__all__ = ["CutAlone", "Point", "Sensitivities", "TradeOff", "sensitivity", "trade_off"]
