"""Commands that use a running gateway, each a thin client of its API (wakegate_client). Start with `app`."""
