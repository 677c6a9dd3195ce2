"""picod's settings: flags, each with an environment variable as its default.

`python -m picod` reads them once. Everything else gets one frozen PicodConfig and never reads the environment.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from picod import wire

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

ENV_MAX_BODY = "PICOD_MAX_BODY"
ENV_MAX_SPILL = "PICOD_MAX_SPILL"
ENV_MAX_UNPACK = "PICOD_MAX_UNPACK"


@dataclass(frozen=True, kw_only=True)
class PicodConfig:
    """All settings of one picod. Sizes are in bytes."""

    workspace: str = "/workspace"
    """The folder that holds the session's files and in which commands start."""

    auth: str = "jwt"
    """`jwt`, or `none` if something else authenticates requests (tests, a sidecar)."""

    audience: str = ""
    """The sandbox's id: a token for any other audience is refused."""

    keys_file: str = ""
    """A JSON Web Key Set with the gateway's public keys."""

    max_output: int = 10_000_000
    """How much of each output stream of a command is answered; a longer stream is written to a file in the workspace.
    """

    max_spill: int = 1 << 30
    """The largest size of such a file. A loop that prints for ever must not fill the disk."""

    max_body: int = 32 << 20
    """The largest JSON body, which is held in memory. Multipart and raw uploads go to disk and have no limit here."""

    max_unpack: int = 8 << 30
    """The largest size that an archive may unpack to, and of a zip itself. A small archive can hold petabytes of zeros.
    """

    preload: Sequence[str] = ()
    """Modules that are imported ahead for scripts on the commands' python3 (preload.py). Empty: there are none."""

    preload_delay: float = 1.0
    """Seconds from the start until they are imported, so that the start itself stays fast."""

    disk_limits: Sequence[tuple[str, int]] = ()
    """Paths of volumes and the bytes that each may hold (commands/disk_guard.py). Empty: something else limits them."""

    max_file_size: int = 0
    """The largest size of one file, where `disk_limits` are kept; 0: that of the largest volume."""

    ports: Sequence[tuple[int, int]] = ((1024, 65535),)
    """First and last port of each range that /api/ports forwards to. picod's own TCP port is always excluded."""

    code_context: str = "lazy"
    """`warm`: a Python context starts with picod; `lazy`: on first use; `off`: there are none."""

    agent: Mapping[str, Any] | None = None
    """The document of wire.ENV_AGENT: a server that picod starts and forwards requests to (ports/agent.py)."""

    command_env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment that commands start with. Nothing of picod's own environment is added."""

    fd: int | None = None
    """A listening socket inherited from the parent."""

    uds: str | None = None
    """Path of a unix socket to listen on."""

    host: str = "127.0.0.1"
    port: int = 8080

    linger: float = 0.0
    """Seconds to serve on after SIGTERM if the workspace holds files, so that they can be copied."""

    lifeline_fd: int | None = None
    """The read end of a pipe whose other end the parent holds: end of file means that the parent has ended."""

    receive: Sequence[tuple[str, str]] = ()
    """Folders and the digests of what is to be unpacked there. With any, picod does that alone (receive.py)."""

    egress_fd: int | None = None
    """A unix socket to the gateway, for the listening socket of the egress proxy (ports/egress.py). None: no egress."""

    oom_fd: int | None = None
    """A unix socket to the gateway, over which it hands in a file of /proc (commands/oom_priority.py)."""

    egress_service: bool = False
    """Whether picod passes what connects to the egress proxy's port on to the gateway (ports/egress_way.py)."""

    egress_host: str = "127.0.0.1"
    """Where it listens for that."""

    code_uid: int | None = None
    """The user of the code that it runs, which picod is when it starts, and is not from then on: code_user.py."""

    inspectable: bool = False
    """Allow debuggers and /proc of the same user to inspect this process: to measure picod, never beside user code."""

    @classmethod
    def from_args(cls, argv: Sequence[str], environ: Mapping[str, str]) -> PicodConfig:
        """Read flags and environment. Exits with status 2 and a message if a value is not valid."""
        parser = _parser(environ)
        args = parser.parse_args(argv)
        # argparse checks `choices` of flags only, not of defaults that come from the environment.
        if args.auth not in ("jwt", "none"):
            parser.error(f"--auth (or {wire.ENV_AUTH}) must be jwt or none, not {args.auth!r}")
        if args.code_context not in ("warm", "lazy", "off"):
            parser.error(f"{wire.ENV_CODE_CONTEXT} must be warm, lazy or off, not {args.code_context!r}")
        if args.auth == "jwt" and not args.keys_file:
            parser.error(
                f"--auth jwt needs --keys-file FILE (or {wire.ENV_KEYS_FILE}): the gateway's public keys as a JWKS"
            )
        if args.auth == "jwt" and not args.audience:
            parser.error(f"--auth jwt needs --audience ID (or {wire.ENV_AUDIENCE}): the id of this sandbox")
        return cls(
            workspace=args.workspace,
            auth=args.auth,
            audience=args.audience,
            keys_file=args.keys_file,
            max_output=_size(parser, "--max-output", wire.ENV_MAX_OUTPUT, args.max_output),
            max_spill=_size(parser, "--max-spill", ENV_MAX_SPILL, args.max_spill),
            max_body=_size(parser, "--max-body", ENV_MAX_BODY, args.max_body),
            code_context=args.code_context,
            max_unpack=_size(parser, "--max-unpack", ENV_MAX_UNPACK, args.max_unpack),
            preload=_modules(parser, args.preload),
            preload_delay=args.preload_delay,
            disk_limits=_disk_limits(parser, environ.get(wire.ENV_DISK_LIMITS, "")),
            max_file_size=_size(parser, "(no flag)", wire.ENV_MAX_FILE_SIZE, environ.get(wire.ENV_MAX_FILE_SIZE, "0")),
            ports=_ports(parser, args.ports),
            agent=_object(parser, wire.ENV_AGENT, environ) or None,
            command_env=_command_env(parser, environ, args.workspace),
            fd=args.fd,
            uds=args.uds,
            host=args.host,
            port=args.port,
            linger=_seconds(parser, wire.ENV_LINGER, environ.get(wire.ENV_LINGER, "0")),
            lifeline_fd=args.lifeline_fd,
            receive=_received(parser, environ.get(wire.ENV_RECEIVE, "")),
            egress_fd=args.egress_fd,
            oom_fd=args.oom_fd,
            egress_service=environ.get(wire.ENV_EGRESS, "") == "service",
            egress_host=args.egress_host,
            code_uid=args.code_uid,
            inspectable=args.inspectable,
        )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="picod", description="Run commands and keep files for one sandbox.", allow_abbrev=False
    )
    add, get = parser.add_argument, environ.get
    add("--fd", type=int, help="an inherited listening socket")
    add("--uds", help="path of a unix socket to listen on")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("--workspace", default=get(wire.ENV_WORKSPACE, PicodConfig.workspace), help=f"also {wire.ENV_WORKSPACE}")
    add("--audience", default=get(wire.ENV_AUDIENCE, ""), help=f"this sandbox's id; also {wire.ENV_AUDIENCE}")
    add("--keys-file", default=get(wire.ENV_KEYS_FILE, ""), help=f"JWKS with public keys; also {wire.ENV_KEYS_FILE}")
    add("--auth", default=get(wire.ENV_AUTH, "jwt"), help=f"jwt or none; also {wire.ENV_AUTH}")
    add(
        "--max-output",
        default=get(wire.ENV_MAX_OUTPUT, str(PicodConfig.max_output)),
        help="bytes answered of each stream",
    )
    add("--max-spill", default=get(ENV_MAX_SPILL, str(PicodConfig.max_spill)), help="bytes of a stream kept in a file")
    add("--max-body", default=get(ENV_MAX_BODY, str(PicodConfig.max_body)), help="bytes of a JSON body")
    add(
        "--code-context",
        choices=("warm", "lazy", "off"),
        default=get(wire.ENV_CODE_CONTEXT, "lazy"),
        help=f"when the Python context starts; also {wire.ENV_CODE_CONTEXT}",
    )
    add("--max-unpack", default=get(ENV_MAX_UNPACK, str(PicodConfig.max_unpack)), help="bytes out of one archive")
    add("--preload", default=get(wire.ENV_PRELOAD, ""), help=f"modules, as in numpy,pandas; also {wire.ENV_PRELOAD}")
    add("--preload-delay", type=float, default=PicodConfig.preload_delay, help="seconds until they are imported")
    add("--ports", default=get(wire.ENV_PORTS, "1024-65535"), help=f"that may be reached; also {wire.ENV_PORTS}")
    # Flags only: an environment variable could be set by an image or a manifest.
    add("--inspectable", action="store_true", help="let debuggers of this user in; never beside untrusted code")
    add("--code-uid", type=int, help="leave this user, as whom it starts, to the code that it runs; as root of two")
    add("--lifeline-fd", type=int, help="a pipe; its end of file ends picod and all it started")
    add("--egress-fd", type=int, help="a unix socket, over which the egress proxy's listening socket is handed out")
    add("--oom-fd", type=int, help="a unix socket, over which this process's oom_score_adj is handed in")
    add("--egress-host", default=PicodConfig.egress_host, help=f"address of the egress proxy, with {wire.ENV_EGRESS}")
    return parser


def _size(parser: argparse.ArgumentParser, flag: str, env: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        parser.error(f"{flag} (or {env}) must be a whole number of bytes, not {text!r}")
    return int(text)


def _seconds(parser: argparse.ArgumentParser, env: str, text: str) -> float:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        parser.error(f"{env} must be a whole number of seconds, not {text[:40]!r}")
    return float(text)


def _modules(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            parser.error(f"--preload (or {wire.ENV_PRELOAD}): expected modules such as numpy,os.path, not {name!r}")
    return names


def _disk_limits(parser: argparse.ArgumentParser, text: str) -> tuple[tuple[str, int], ...]:
    limits = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        path, _, size = item.partition("=")
        if not path.startswith("/") or not size.isascii() or not size.isdigit() or not 0 < int(size[:20]) < 1 << 60:
            parser.error(f"{wire.ENV_DISK_LIMITS}: expected /folder=bytes, not {item!r}")
        limits.append((path, int(size)))
    return tuple(limits)


def _received(parser: argparse.ArgumentParser, text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        folder, _, digest = item.partition("=")
        if not folder.startswith("/") or not _DIGEST.fullmatch(digest):
            parser.error(f"{wire.ENV_RECEIVE}: expected /folder=sha256:HEX, not {item[:100]!r}")
        found.append((folder, digest))
    return tuple(found)


def _ports(parser: argparse.ArgumentParser, text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = item.partition("-")
        numbers = [
            int(number) if number.isascii() and number.isdigit() and len(number) <= 5 else 0
            for number in (first, last if dash else first)
        ]
        if not 1 <= numbers[0] <= numbers[1] <= 65535:
            parser.error(
                f"--ports (or {wire.ENV_PORTS}): expected ports or ranges such as 8000,9000-9100, not {item!r}"
            )
        ranges.append((numbers[0], numbers[1]))
    return tuple(ranges)


def _command_env(parser: argparse.ArgumentParser, environ: Mapping[str, str], workspace: str) -> Mapping[str, str]:
    text = environ.get(wire.ENV_COMMAND_ENV)
    if not text:
        path = environ.get("PATH", DEFAULT_PATH)
        passed = {name: environ[name] for name in environ.get(wire.ENV_FORWARD, "").split(",") if name in environ}
        base = {"PATH": path, "HOME": workspace, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108 - the sandbox's own
        return base | passed
    value = _object(parser, wire.ENV_COMMAND_ENV, environ)
    if not all(isinstance(item, str) for item in value.values()):
        parser.error(f"{wire.ENV_COMMAND_ENV} must be a JSON object of strings")
    return value


def _object(parser: argparse.ArgumentParser, name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(environ.get(name) or "{}")
    except ValueError as error:
        parser.error(f"{name} is not JSON: {error}")
    if not isinstance(value, dict):
        parser.error(f"{name} must be a JSON object")
    return dict(value)
