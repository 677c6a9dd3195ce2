"""The data path: a request's head -> target -> endpoint -> bytes both ways.

Imports `sessions`, `sandbox`, `observability` and `core`. Start with `proxy`, then `fast_path`, which answers whole
requests from callbacks.
"""
