"""Which container images sandboxes may be made from: registries, digests, and cosign's signatures.

`reference` parses names, `signature` verifies, `registry` and `bundles` find signatures, `policy` joins them. Imports
`core` only. Start with `policy`.
"""
