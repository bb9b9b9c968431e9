"""Plans that tests of checkpoints write follow the published schema; kernels must write all their memory."""

from support.plan_schemas import plans_follow_their_schema
from support.poison import poisoned_empty

__all__ = ["plans_follow_their_schema", "poisoned_empty"]
