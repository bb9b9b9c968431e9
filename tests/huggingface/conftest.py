"""Every plan that a test of Hugging Face's networks writes follows the published schema."""

from support.plan_schemas import plans_follow_their_schema

__all__ = ["plans_follow_their_schema"]
