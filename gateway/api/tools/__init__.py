"""Tools for models: lists them, parses a model's calls, runs each at most once, renders results for the model.

Imports the shared helpers of `api` only; the surfaces `openai` and `mcp` are built on it. Start with `service`.
"""
