"""Plans: one width per channel group, solved from spectra under a budget, checked against a model."""

from slimfast.plans.costs import Cost, count_module
from slimfast.plans.language_models import warn_of_units
from slimfast.plans.mask_planning import plan_from_masks
from slimfast.plans.plan_data import Allocation, GroupPlan, Plan
from slimfast.plans.planning import check_plan, plan, plan_widths

__all__ = [
    "Allocation",
    "Cost",
    "GroupPlan",
    "Plan",
    "check_plan",
    "count_module",
    "plan",
    "plan_from_masks",
    "plan_widths",
    "warn_of_units",
]
