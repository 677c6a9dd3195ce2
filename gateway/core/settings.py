"""Settings: one dataclass, read once at the start. Flags win over WAKEGATE_* variables, those over the TOML file.

Each field's metadata holds its help text; its flag (`--state-dir`), variable (`WAKEGATE_STATE_DIR`) and TOML key
(`state_dir`) follow from its name, so a setting is spelled in one place. All problems are reported at once.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError
from gateway.core.units import parse_duration, parse_quantity, readable_size

ENV_PREFIX = "WAKEGATE_"
_LARGEST = 1e9  # of numbers and seconds
_LARGEST_SIZE = 2.0**50  # bytes


def _setting(
    default: Any, help: str, *, kind: str, choices: tuple[str, ...] = (), metavar: str = "", low: float | None = None
) -> Any:
    """A field with what is needed to parse, check and explain it. `kind`: text, int, size, duration, path(s), flag."""
    return field(
        default=default,
        metadata={"help": help, "kind": kind, "choices": choices, "metavar": metavar or kind.upper(), "low": low},
    )


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """The user's data folder by the XDG base directory specification."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/var/lib", ".local", "share")
    return Path(base) / "wakegate"


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Durations are seconds."""

    host: str = _setting("127.0.0.1", "address to listen on", kind="text")
    port: int = _setting(8080, "port to listen on; 0 picks a free one", kind="int", low=0)
    workers: int = _setting(
        1,
        "equal gateway processes on the one port; more than 1 needs --engine kubernetes and a Redis",
        kind="int",
        low=1,
    )
    worker_port: int = _setting(
        0,
        "port on which worker 1 answers by itself, for /metrics; worker 2 has the next, and so on (default: none)",
        kind="int",
        low=0,
    )
    runtime: tuple[Path, ...] = _setting(
        (), "runtime manifest, or a folder of them, served beside the built-in my-interpreter; may be repeated",
        kind="paths", metavar="FILE_OR_FOLDER",
    )  # fmt: skip
    no_default_runtime: bool = _setting(False, "serve the runtimes of --runtime only", kind="flag")
    runtime_sources: tuple[Path, ...] = _setting(
        (), "folder from which manifests may take spec.wakegate.source and python, besides their own; may be repeated",
        kind="paths", metavar="FOLDER",
    )  # fmt: skip
    state_dir: Path = _setting(
        Path(), "folder for records, keys and workspaces (default: the user's data folder)", kind="path"
    )
    store: str = _setting(
        "",
        "session store: sqlite:///PATH or redis://... (default: sqlite in the state folder)",
        kind="text",
        metavar="URL",
    )
    store_prefix: str = _setting(
        "wakegate", "begins the names of all keys in Redis; gateways with the same one share everything", kind="text"
    )
    advertise: str = _setting(
        "",
        "URL at which other gateways on the same Redis reach this one (default: where it listens)",
        kind="text",
        metavar="URL",
    )
    takeover_after: float = _setting(
        8.0, "silence of a gateway after which others on the same Redis take it for dead", kind="duration", low=0.2
    )
    engine: str = _setting("local", "what runs the sandboxes", kind="text", choices=("local", "kubernetes"))
    kubeconfig: Path = _setting(
        Path(), "kubeconfig file of --engine kubernetes (default: the pod's own access, else the user's)", kind="path"
    )
    kube_namespaces: str = _setting(
        "default", "namespaces whose runtimes are served and in which sandboxes run, with commas between", kind="text"
    )
    kube_gateway_namespace: str = _setting(
        "wakegate", "namespace of the gateway itself: the Secret with the signing keys is there", kind="text"
    )
    kube_concurrency: int = _setting(32, "requests to the Kubernetes API at once", kind="int", low=1)
    kube_spread: str = _setting(
        "spread", "how a runtime's pods lie over the nodes", kind="text", choices=("spread", "pack", "balanced")
    )
    kube_scheduler: str = _setting("", "schedulerName of sandboxes (default: the cluster's)", kind="text")
    kube_runtime_class: str = _setting("", "runtimeClassName of sandboxes (default: the cluster's)", kind="text")
    kube_trust_manifests: bool = _setting(
        False,
        "let runtimes ask for what reaches their node or other workloads: hostPath, privileged, host networks,"
        " service accounts, Secrets",
        kind="flag",
    )
    picod_image: str = _setting("wakegate/picod:0.1.0", "image of CodeInterpreters that name none", kind="text")
    sandbox_start_timeout: float = _setting(
        120.0, "longest time that a pod made for a session may take to get ready", kind="duration", low=1
    )
    isolation: str = _setting(
        "bubblewrap", "how local sandboxes are isolated; `process` gives NO isolation and is for trusted code only",
        kind="text", choices=("bubblewrap", "process"),
    )  # fmt: skip
    sandbox_python: Path = _setting(
        Path(),
        "environment folder whose python3 user code gets (default: .venv-sandbox beside the checkout)",
        kind="path",
    )
    warm_pool: int = _setting(3, "warm sandboxes of the built-in my-interpreter", kind="int", low=0)
    preload: str = _setting(
        "",
        "modules that python3 scripts and contexts of the built-in my-interpreter find imported, as in numpy,pandas;"
        " each warm sandbox holds them in memory, twice (default: none)",
        kind="text",
        metavar="MODULES",
    )
    code_context: str = _setting(
        "warm",
        "Python context of local sandboxes: started with a warm sandbox, when first used, or not at all (off);"
        " for runtimes without spec.wakegate.codeContext",
        kind="text",
        choices=("warm", "lazy", "off"),
    )
    max_sandboxes: int = _setting(
        512, "sandboxes bound to sessions on this gateway at once; beyond it 429 with Retry-After", kind="int", low=1
    )
    token_algorithm: str = _setting(
        "EdDSA", "how tokens for picod are signed; RS256 drives foreign picods", kind="text", choices=("EdDSA", "RS256")
    )

    key_rotation: float = _setting(
        0.0, "age at which the signing key is followed by a new one; 0: never by itself", kind="duration", low=0
    )
    key_settle: float = _setting(
        180.0,
        "how long pods can see a new signing key before it signs; kubelets look about once a minute",
        kind="duration",
        low=0,
    )

    hold_per_session: int = _setting(1024, "requests that may wait for one session's sandbox", kind="int", low=1)
    hold_total: int = _setting(8192, "requests that may wait for sandboxes in all", kind="int", low=1)
    slots_per_sandbox: int = _setting(256, "requests in flight to one sandbox; further ones queue", kind="int", low=1)

    connect_timeout: float = _setting(5.0, "longest dial of a sandbox", kind="duration", low=0.001)
    request_head_timeout: float = _setting(
        30.0, "longest time a client may take to send a request's head", kind="duration", low=0.001
    )
    request_idle_timeout: float = _setting(
        60.0, "longest silence of a client that is sending a body", kind="duration", low=0.001
    )
    client_read_timeout: float = _setting(
        300.0, "longest time a client may take no byte of its response", kind="duration", low=0.001
    )
    response_idle_timeout: float = _setting(
        3600.0, "longest silence of a sandbox that owes a response", kind="duration", low=0.001
    )
    request_timeout: float = _setting(
        0.0, "longest whole exchange, both directions; 0: no bound", kind="duration", low=0
    )
    max_connections: int = _setting(
        0,
        "client connections open at once; beyond it the longest idle ones are closed (default: the limit of file"
        " descriptors, less a quarter and at least 256 that are kept for sandboxes)",
        kind="int",
        low=0,
    )
    keep_alive_timeout: float = _setting(
        75.0, "how long an idle client connection stays open", kind="duration", low=0.001
    )
    shutdown_delay: float = _setting(
        1.0,
        "how long after SIGTERM requests are still taken, while readiness fails and each answer closes its connection",
        kind="duration",
        low=0,
    )
    drain_timeout: float = _setting(30.0, "how long running requests may go on after that", kind="duration", low=0)

    autoscaler_tick: float = _setting(1.0, "how often warm pools are looked at", kind="duration", low=0.05)
    cold_start_cost: float = _setting(
        0.0,
        "worth of a cold start in idle sandbox-seconds; 0: each runtime's targetMissRate decides",
        kind="duration",
        low=0,
    )
    wake_cost: float = _setting(
        30.0, "worth of a wake in idle sandbox-seconds, for advice on sessions", kind="duration", low=0
    )
    advised_hibernation: bool = _setting(
        False, "hibernate sessions before their idle timeout when their past idle times advise it", kind="flag"
    )
    prewake: bool = _setting(False, "wake hibernated sessions ahead of a request that is likely soon", kind="flag")
    max_warm: int = _setting(0, "warm sandboxes over all runtimes; 0: each runtime's pool.max alone", kind="int", low=0)

    sweep_interval: float = _setting(
        5.0, "how often idle and expired sessions are looked for", kind="duration", low=0.01
    )
    snapshots: str = _setting(
        "", "where hibernated sessions are kept: file:///FOLDER, s3://BUCKET/PREFIX, gs://..., az://..."
        " (default: parked by the local engine, which copies nothing)", kind="text", metavar="URL",
    )  # fmt: skip
    snapshot_max_size: int = _setting(
        4 << 30, "largest snapshot, compressed; a session over it stays awake; 0: no bound", kind="size", low=0
    )
    disk_reserve: int = _setting(
        1 << 30, "local engine: with less free space for workspaces the sandbox that fills the disk ends; 0: never",
        kind="size", low=0,
    )  # fmt: skip
    snapshot_key_file: Path = _setting(
        Path(), "keys that snapshots are encrypted with: lines of NAME:BASE64 of 32 bytes, the first encrypts",
        kind="path", metavar="FILE",
    )  # fmt: skip
    hibernated_retention: float = _setting(
        604800.0, "how long a hibernated session is kept before it ends", kind="duration", low=1
    )
    terminated_retention: float = _setting(
        3600.0, "how long the record of an ended session is kept", kind="duration", low=0
    )

    allowed_origins: str = _setting(
        "",
        "origins of web pages that may use the gateway, comma-separated (its own pages and those of this machine always"
        " may)",
        kind="text",
        metavar="URLS",
    )
    allowed_hosts: str = _setting(
        "",
        "names in Host that are the gateway's, comma-separated, besides this machine's and --host; * allows any"
        " (default: any, unless it listens on loopback)",
        kind="text",
        metavar="NAMES",
    )
    strip_headers: str = _setting(
        "x-api-key,api-key,x-auth-request-user,x-auth-request-email,x-auth-request-groups,x-auth-request-access-token,"
        "x-auth-request-preferred-username,x-auth-request-redirect,x-forwarded-access-token,x-forwarded-user,"
        "x-forwarded-email,x-forwarded-groups,x-forwarded-preferred-username,x-amzn-oidc-accesstoken,"
        "x-amzn-oidc-data,x-amzn-oidc-identity,x-goog-iap-jwt-assertion,cf-access-jwt-assertion,remote-user",
        "request headers that reach no sandbox, comma-separated, in place of the default",
        kind="text",
        metavar="NAMES",
    )
    trusted_proxies: str = _setting(
        "",
        "addresses and networks of the proxies in front, comma-separated, whose X-Forwarded-* and Forwarded fields say"
        " who the client is and by which name and scheme it came (default: nobody's word is taken)",
        kind="text",
        metavar="NETWORKS",
    )
    picture_max_side: int = _setting(
        1568,
        "pixels on the long side of the pictures that tools give to models; larger ones are scaled down",
        kind="int",
        low=16,
    )

    log_level: str = _setting(
        "info", "least severe log line", kind="text", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _setting("console", "how log lines look", kind="text", choices=("console", "json"))
    access_log: bool = _setting(False, "one log line per request", kind="flag")
    otlp_endpoint: str = _setting(
        "", "OTLP/HTTP receiver for OpenTelemetry spans, e.g. http://127.0.0.1:4318 (needs the extra `otel`)",
        kind="text", metavar="URL",
    )  # fmt: skip


def make_state_dir(path: Path) -> None:
    """Make the state folder, for its owner only. Raises SettingsError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError([f"--state-dir {path}: cannot be made: {error.strerror}"]) from error


def probe_state_dir(path: Path) -> str:
    """Try a write of 4 KiB in the state folder. Returns what is wrong, empty if nothing is. Blocks."""
    probe = path / f".probe-{os.getpid()}"
    try:
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return f"the state directory {path} cannot be written to: {error.strerror}"
    return ""


def load(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Merge flags, environment and file into Settings.

    Raises:
        SettingsError: with every problem at once, each naming where the value came from.
    """
    problems: list[str] = []
    known = {setting.name: setting for setting in fields(Settings)}
    sources = _file_values(arguments.get("config") or environ.get(ENV_PREFIX + "CONFIG"), known, problems)
    sources |= _environment_values(environ, known, problems)
    for name in known:
        if arguments.get(name) is not None:
            sources[name] = ("--" + name.replace("_", "-"), arguments[name])
    values: dict[str, Any] = {}
    for name, (where, raw) in sources.items():
        try:
            values[name] = _parse(known[name], raw)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise SettingsError(problems)
    values.setdefault("state_dir", default_state_dir(environ))
    return Settings(**values)


def _file_values(path: str | None, known: Mapping[str, Field[Any]], problems: list[str]) -> dict[str, tuple[str, Any]]:
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not TOML: {error}")
        return {}
    for name in sorted(document.keys() - known.keys()):
        problems.append(f"{path}: unknown setting {name!r}{_suggestion(name, known)}")
    return {name: (f"{path}: {name}", value) for name, value in document.items() if name in known}


def _environment_values(
    environ: Mapping[str, str], known: Mapping[str, Field[Any]], problems: list[str]
) -> dict[str, tuple[str, Any]]:
    values: dict[str, tuple[str, Any]] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in (ENV_PREFIX + "CONFIG", ENV_PREFIX + "PYTHON"):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in known:
            values[name] = (variable, environ[variable])
        else:
            problems.append(f"{variable}: unknown setting{_suggestion(name, known)}")
    return values


def _suggestion(name: str, known: Mapping[str, Field[Any]]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parse(setting: Field[Any], raw: Any) -> Any:
    """One value from text (flag, variable) or from TOML. Raises ValueError that says what would be right."""
    meta = setting.metadata
    kind: str = meta["kind"]
    if kind == "paths":
        items: Sequence[Any] = (
            raw.split(os.pathsep) if isinstance(raw, str) else raw if isinstance(raw, list) else [raw]
        )
        if not all(isinstance(item, str) and item for item in items):
            raise ValueError(f"expected a path or a list of paths, got {raw!r}")
        return tuple(_parse_path(item) for item in items)
    if kind == "flag":
        if isinstance(raw, bool):
            return raw
        if str(raw).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return str(raw).lower() in ("1", "true", "yes", "on")
        raise ValueError(f"expected true or false, got {raw!r}")
    if kind in ("text", "path"):
        if not isinstance(raw, str) or not raw:
            raise ValueError(f"expected text, got {raw!r}")
        if meta["choices"] and raw not in meta["choices"]:
            raise ValueError(f"expected one of {', '.join(meta['choices'])}; got {raw!r}")
        return _parse_path(raw) if kind == "path" else raw
    if kind == "size":
        return _parse_size(raw)
    return _parse_number(meta, kind, raw)


def _parse_path(raw: str) -> Path:
    try:
        return Path(raw).expanduser()
    except RuntimeError:  # pathlib's answer to `~name` where no such user, or no home directory, is known
        raise ValueError(f"expected a path, got {raw!r}: no home directory is known for {raw.split('/')[0]}") from None


def _parse_size(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError(f"expected a size such as 512Mi or 4Gi, got {raw!r}")
    try:
        size = float(raw) if isinstance(raw, int) else parse_quantity(raw)
    except (ValueError, OverflowError):
        raise ValueError(f"expected a size such as 512Mi or 4Gi, got {raw!r}") from None
    if not 0 <= size < _LARGEST_SIZE or size != int(size):
        raise ValueError(f"must be a whole number of bytes below {readable_size(int(_LARGEST_SIZE))}, got {raw!r}")
    return int(size)


def _parse_number(meta: Mapping[str, Any], kind: str, raw: Any) -> int | float:
    value: int | float
    if isinstance(raw, bool):
        raise ValueError(f"expected a {'number' if kind == 'int' else 'duration'}, got {raw!r}")
    if kind == "int":
        try:
            value = int(raw)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected a whole number, got {raw!r}") from None
        if isinstance(raw, float):
            raise ValueError(f"expected a whole number, got {raw!r}")
    elif isinstance(raw, int | float):
        value = float(raw)
    else:
        value = float(raw) if isinstance(raw, str) and raw.replace(".", "", 1).isdigit() else parse_duration(str(raw))
    if not value < _LARGEST:  # also not a number
        raise ValueError(f"must be below {_LARGEST:g}, got {raw!r}")
    if meta["low"] is not None and value < meta["low"]:
        raise ValueError(f"must be at least {meta['low']:g}, got {raw!r}")
    if meta["help"].startswith("port") and value > 65535:
        raise ValueError(f"must be at most 65535, got {raw!r}")
    return value
