"""Fixtures of the checkpoints' tests: a sharded network, plans held to their schema, poisoned memory."""

from support.plan_schemas import plans_follow_their_schema
from support.poison import poisoned_empty
from support.shard_cases import empty, index, model

__all__ = ["empty", "index", "model", "plans_follow_their_schema", "poisoned_empty"]
