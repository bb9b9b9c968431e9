"""Gradual pruning: a network cut in rounds, and trained between them."""

from slimfast.gradual.callbacks import lightning_callback, trainer_callback
from slimfast.gradual.runs import Round, Rounds
from slimfast.gradual.verb import rounds

__all__ = ["Round", "Rounds", "lightning_callback", "rounds", "trainer_callback"]
