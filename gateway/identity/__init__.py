"""Who a request comes from: API keys, session tokens, and the secret that all gateways of a store share.

Imports `core` only. Start with `authenticator`: it turns the credential of a request into a `core.identity.Identity`,
from memory. `keys` is the form of an API key, `directory` keeps them in the store.
"""
