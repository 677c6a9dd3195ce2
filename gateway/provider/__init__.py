"""Engines that make sandboxes: one package each, behind interfaces.SandboxProvider.

They import `core`, `observability`, `runtimes` and `sandbox`, and do not know each other. Start with `local`.
"""
