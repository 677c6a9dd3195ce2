"""OpenAI's API: containers and their files, and tool calls in OpenAI's and Anthropic's message formats.

Imports `api.tools` and the shared helpers of `api`. Start with `tool_calls`, or with `containers`.
"""
