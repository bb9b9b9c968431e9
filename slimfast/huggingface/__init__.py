"""Hugging Face networks: thin ones that ``from_pretrained`` loads, and widths that their classes take."""

from slimfast.huggingface.pretrained import save_pretrained
from slimfast.huggingface.uniform import plan_uniform

__all__ = ["plan_uniform", "save_pretrained"]
