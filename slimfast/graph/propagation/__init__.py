"""Follow channels through a recording: find which slices of which tensors can only be removed together."""
