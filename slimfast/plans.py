"""Plans: one width per channel group, solved from spectra under a budget, checked against a model."""

from __future__ import annotations

from slimfast.plan_data import GroupPlan, Plan

__all__ = ["GroupPlan", "Plan"]
