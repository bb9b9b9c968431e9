"""The published JSON Schemas of plans, as validators."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from support.paths import ROOT

SCHEMAS = ROOT / "docs" / "schemas"
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
