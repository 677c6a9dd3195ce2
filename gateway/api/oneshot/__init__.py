"""One-shot runs: a program, its files and its answer in one request. The sandbox is claimed for it and then ends.

Imports the shared helpers of `api`. Start with `runs`, which both APIs use: `native` and `dify`.
"""
