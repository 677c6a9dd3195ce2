"""The OpenAI dialect: containers and their files, and a model's tool calls as messages.

Imports `api.tools` and the shared helpers of `api`. Start with `tool_calls`.
"""
