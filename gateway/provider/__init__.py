"""Engines that make sandboxes: one package each, behind interfaces.SandboxProvider."""
