"""agent-sandbox's API."""
