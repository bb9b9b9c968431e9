"""Plans: one width per channel group, solved from spectra under a budget, checked against a model."""

from slimfast.plans.curves import error_curves
from slimfast.plans.data import Allocation, GroupPlan, Plan
from slimfast.plans.gains import ErrorCurve
from slimfast.plans.planning import check_plan, plan, plan_widths

__all__ = [
    "Allocation",
    "ErrorCurve",
    "GroupPlan",
    "Plan",
    "check_plan",
    "error_curves",
    "plan",
    "plan_widths",
]
