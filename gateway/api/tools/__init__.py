"""Tools for models: which there are, what a model's calls mean, how they run, and the answer that a model reads.

Imports the shared helpers of `api` only; the surfaces (`openai`, `mcp`) stand on it. Start with `service`.
"""
