"""The published JSON Schemas of plans, as validators, and a fixture that holds every plan to them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from slimfast import Plan
from support.paths import ROOT

SCHEMAS = ROOT / "docs" / "reference" / "schemas"
VERSIONS = sorted(int(path.stem.removeprefix("plan-")) for path in SCHEMAS.glob("plan-*.json"))


@cache
def validator(version: int) -> Any:
    """The validator of plans of that version of the schema."""
    schema = json.loads((SCHEMAS / f"plan-{version}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check(text: str) -> None:
    """Raise unless a document follows the schema of the version it names."""
    document = json.loads(text)
    validator(document["schema"]).validate(document)


@pytest.fixture(autouse=True)
def plans_follow_their_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan that a test writes as JSON follows the published schema."""
    to_json = Plan.to_json

    def checked(plan: Plan) -> str:
        text = to_json(plan)
        check(text)
        return text

    monkeypatch.setattr(Plan, "to_json", checked)
