"""Several processes that work on one thing: how they find each other, and tensors spread over them."""

from slimfast.distributed.team import Team, join_team

__all__ = ["Team", "join_team"]
