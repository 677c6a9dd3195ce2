"""AgentScope Runtime's sandbox server, below /agentscope.

Source: github.com/agentscope-ai/agentscope-runtime, sandbox/manager, as version 1.1.6 asks for it.
"""
