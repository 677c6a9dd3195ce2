"""The route table of the control surfaces, and the OpenAPI 3.1 document made from it.

Imports `core` only. Start with `table`, the gateway's own operations, and `sandbox`, those of picod; both use the
schemas of `schemas`, and `document` makes /openapi.json of them.
"""
