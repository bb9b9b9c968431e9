"""What becomes of accuracy: one module a study, and what the studies share."""
