"""Channels followed through a recording: which slices of which tensors can only be removed together."""
