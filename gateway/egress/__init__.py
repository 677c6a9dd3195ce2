"""What sandboxes may reach: the policy, and the service through which they reach it (docs/adr/0017-egress.md).

`policy` and `addresses` decide and do nothing else; manifests, tenants and both engines use them. The service is a
process of its own (`__main__`, `service`); the gateway sends it policies and reads its records (`gate`).
Start reading with `policy`, then `clients`.
"""
