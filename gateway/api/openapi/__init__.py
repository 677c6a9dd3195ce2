"""What this gateway answers: the route table of the control surfaces, and the OpenAPI 3.1 document made from it.

Start with `table` (the gateway's own operations) and `sandbox` (what picod answers through it); both use the shapes of
`schemas`, and `document` makes /openapi.json. Imports the shared helpers of `api` at most.
"""
