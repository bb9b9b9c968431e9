"""One forward pass written down: its operations, where each ran, and which lengths its Python read."""
