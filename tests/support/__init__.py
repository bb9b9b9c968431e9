"""Cases, fixtures and helpers that several tests share."""
