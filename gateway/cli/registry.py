"""The commands that use a running gateway over its API, by name: where each is, and its line in `wakegate --help`.

To add one, write a module below gateway/cli with a function for typer (gateway/cli/remote/connection.py has `over_api`,
which gives it a client) or a typer.Typer of several verbs, and name it here. A module is imported only when its command
is called, so that `wakegate serve` pays for none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remote:
    """A command: `target` is MODULE:NAME of its function or typer.Typer, `help` one line."""

    target: str
    help: str
    group: str


_SESSIONS, _INSIDE, _AGENTS, _GATEWAY = "Sessions", "Inside a session", "Agents", "The gateway"
_REMOTE = "gateway.cli.remote."

# Texts and not functions: to name a function is to import its module. The line of help is here for the same reason:
# `wakegate --help` takes it from no docstring, and imports none of them.
COMMANDS: Mapping[str, Remote] = {
    "run": Remote(_REMOTE + "execute:run", "run a command in a new session, and end the session", _SESSIONS),
    "create": Remote(_REMOTE + "sessions:create", "make a session, and print its id", _SESSIONS),
    "ls": Remote(_REMOTE + "sessions:ls", "list sessions", _SESSIONS),
    "get": Remote(_REMOTE + "sessions:get", "show a session", _SESSIONS),
    "resize": Remote(
        _REMOTE + "sessions:resize", "give a session more or less of the machine, while it runs", _SESSIONS
    ),
    "pause": Remote(_REMOTE + "sessions:pause", "hibernate sessions", _SESSIONS),
    "wake": Remote(_REMOTE + "sessions:wake", "give hibernated sessions their sandboxes back", _SESSIONS),
    "rm": Remote(_REMOTE + "sessions:rm", "end sessions", _SESSIONS),
    "exec": Remote(_REMOTE + "execute:execute", "run a command in a session", _INSIDE),
    "shell": Remote(_REMOTE + "terminal:shell", "open a terminal in a session", _INSIDE),
    "code": Remote(_REMOTE + "code:code", "run code in a session; its variables stay", _INSIDE),
    "cp": Remote(_REMOTE + "copy:cp", "copy files and folders into a session, or out of it", _INSIDE),
    "logs": Remote(_REMOTE + "logs:logs", "what became of a session, and what runs in it", _INSIDE),
    "port-forward": Remote(_REMOTE + "forward:port_forward", "serve a port of a session on this machine", _INSIDE),
    "open": Remote(_REMOTE + "browser:open_port", "open a port of a session in the browser", _INSIDE),
    "deploy": Remote("gateway.cli.deploy.deploy:deploy", "put code on the gateway as an agent", _AGENTS),
    "agents": Remote(_REMOTE + "agents:app", "list, show, stop, start and delete agents", _AGENTS),
    "rollout": Remote("gateway.cli.deploy.rollout:app", "status, history and undo of changes to an agent", _AGENTS),
    "invoke": Remote(_REMOTE + "invoke:invoke", "ask an agent something, now or in the background", _AGENTS),
    "tasks": Remote(_REMOTE + "tasks:app", "background invocations: list, get, result, cancel, retry", _AGENTS),
    "top": Remote(_REMOTE + "top:top", "watch sandboxes, pools and queues", _GATEWAY),
    "pools": Remote(_REMOTE + "pools:app", "warm pools, and why each has its size", _GATEWAY),
    "runtimes": Remote(_REMOTE + "runtimes:app", "list, show and check runtimes", _GATEWAY),
    "bench": Remote(_REMOTE + "bench:bench", "how long creates, commands, sleeps and wakes take here", _GATEWAY),
    "usage": Remote(_REMOTE + "usage:usage", "what was used, and what it costs", _GATEWAY),
    "tenants": Remote(_REMOTE + "tenants:app", "list, show, set and delete tenants", _GATEWAY),
    "keys": Remote(_REMOTE + "keys:app", "make, list and end API keys, here or at a gateway", _GATEWAY),
    "config": Remote(
        _REMOTE + "config:config", "every setting of `serve`, its value and where it comes from", _GATEWAY
    ),
    "login": Remote(_REMOTE + "login:login", "remember a gateway's address and key", _GATEWAY),
    "completion": Remote(_REMOTE + "completion:completion", "print a shell's completion script", _GATEWAY),
}
# Those of parser.py, which act on this machine.
LOCAL: Mapping[str, str] = {
    "serve": "run a gateway",
    "doctor": "check everything that a gateway needs",
    "prune": "delete what no session needs any more",
    "uninstall": "delete the state directory",
    "audit": "the audit trail: its public key, and whether files are as written",
    "replay": "replay traces of claims through pool policies",
}


def grouped_help() -> str:
    """The text of `wakegate --help`: all commands, by what they are about."""
    groups: dict[str, dict[str, str]] = {}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, {})[name] = command.help
    groups["On this machine"] = dict(LOCAL)
    lines = [
        "usage: wakegate [-h] [--version] COMMAND ...", "",
        "Sandboxes for AI agents: use a gateway, run one, look after it.", "",
        "  wakegate serve                         # a gateway on http://127.0.0.1:8080",
        "  wakegate run python3 -c 'print(1)'     # a command in a new sandbox",
    ]  # fmt: skip
    for title, commands in groups.items():
        lines += ["", f"{title}:", *(f"  {name:<13} {text}" for name, text in commands.items())]
    lines += ["", "`wakegate COMMAND --help` has each command's flags and examples; docs/cli.md the exit statuses."]
    return "\n".join(lines) + "\n"
