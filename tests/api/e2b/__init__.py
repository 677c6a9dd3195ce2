"""E2B's API."""
