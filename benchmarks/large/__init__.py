"""Networks too large for memory, and work shared by several processes."""
