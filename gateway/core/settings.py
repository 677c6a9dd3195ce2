"""Settings: one frozen dataclass, loaded once at startup by `settings_load`.

Each field's metadata has its help text and its bounds; its flag (`--state-dir`), variable (`WAKEGATE_STATE_DIR`) and
TOML key (`state_dir`) follow from its name, so a setting is spelled in one place. One module, although it is long: it
is a table, and an operator, the flags and docs/settings.md read it in this order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError

ENV_PREFIX = "WAKEGATE_"


def _setting(
    default: Any,
    help: str,
    *,
    kind: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field whose metadata says how to parse, check and explain it.

    `kind` is text, int, size, duration, path, paths or flag. `low` and `high` bound numbers, ends included.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "kind": kind,
            "choices": choices,
            "metavar": metavar or kind.upper(),
            "low": low,
            "high": high,
        },
    )


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`wakegate` in the user's data folder, as the XDG Base Directory Specification defines it."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/var/lib", ".local", "share")
    return Path(base) / "wakegate"


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults, in the order of docs/settings.md. Durations are seconds, sizes bytes."""

    host: str = _setting("127.0.0.1", "address to listen on", kind="text")
    port: int = _setting(8080, "port to listen on; 0 picks a free one", kind="int", low=0, high=65535)
    workers: int = _setting(
        1,
        "gateway processes that share the port; more than 1 needs --engine kubernetes and a Redis",
        kind="int",
        low=1,
    )
    worker_port: int = _setting(
        0,
        "extra port of worker 1 alone, for /metrics; worker 2 uses the next port, and so on (default: none)",
        kind="int",
        low=0,
        high=65535,
    )
    tls_cert: Path = _setting(
        Path(), "certificate for https, PEM, followed by those that issued it; looked at for changes every 5 s",
        kind="path", metavar="FILE",
    )  # fmt: skip
    tls_key: Path = _setting(Path(), "private key of --tls-cert, PEM, not encrypted", kind="path", metavar="FILE")
    tls_client_ca: Path = _setting(
        Path(), "certificates that issue clients' certificates, PEM; clients without one are then refused",
        kind="path", metavar="FILE",
    )  # fmt: skip
    runtime: tuple[Path, ...] = _setting(
        (), "runtime manifest or a folder of manifests, in addition to the built-in my-interpreter; may be repeated",
        kind="paths", metavar="FILE_OR_FOLDER",
    )  # fmt: skip
    no_default_runtime: bool = _setting(False, "serve only the runtimes of --runtime", kind="flag")
    runtime_sources: tuple[Path, ...] = _setting(
        (), "folder that manifests may refer to in spec.wakegate.source and python, besides their own; may be repeated",
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
        "wakegate", "prefix of all keys in Redis; gateways with the same prefix share sessions", kind="text"
    )
    advertise: str = _setting(
        "",
        "URL at which other gateways on the same Redis reach this one (default: where it listens)",
        kind="text",
        metavar="URL",
    )
    takeover_after: float = _setting(
        8.0,
        "time without a heartbeat after which other gateways on the same Redis consider a gateway dead",
        kind="duration",
        low=0.2,
    )
    engine: str = _setting("local", "what runs the sandboxes", kind="text", choices=("local", "kubernetes"))
    kubeconfig: Path = _setting(
        Path(),
        "kubeconfig file for --engine kubernetes (default: the pod's service account, else the user's kubeconfig)",
        kind="path",
    )
    kube_namespaces: str = _setting(
        "default", "namespaces whose runtimes are served and in which sandboxes run, comma-separated", kind="text"
    )
    kube_gateway_namespace: str = _setting(
        "wakegate", "namespace of the gateway, which holds the Secret with the signing keys", kind="text"
    )
    kube_concurrency: int = _setting(32, "concurrent requests to the Kubernetes API", kind="int", low=1)
    kube_spread: str = _setting(
        "spread",
        "how a runtime's pods are placed on the nodes",
        kind="text",
        choices=("spread", "pack", "balanced"),
    )
    kube_scheduler: str = _setting("", "schedulerName of sandboxes (default: the cluster's)", kind="text")
    kube_runtime_class: str = _setting("", "runtimeClassName of sandboxes (default: the cluster's)", kind="text")
    kube_claims_tenant: str = _setting(
        "",
        "answer SandboxClaims of agent-sandbox in these namespaces; their sessions are this tenant's, whose keys reach"
        " them (default: not answered)",
        kind="text",
    )
    kube_trust_manifests: bool = _setting(
        False,
        "allow runtimes to use what gives access to their node or to other workloads: hostPath, privileged, host"
        " networks, service accounts, Secrets",
        kind="flag",
    )
    image_registries: str = _setting(
        "",
        "registries, and folders of them, that images of sandboxes may come from, comma-separated, e.g."
        " ghcr.io/acme,docker.io/library (default: any)",
        kind="text",
        metavar="NAMES",
    )
    image_digests: bool = _setting(False, "refuse images that are not named by digest", kind="flag")
    image_keys: tuple[Path, ...] = _setting(
        (), "public key of cosign, PEM, by which images of sandboxes must be signed; if repeated, by one of them",
        kind="paths", metavar="FILE",
    )  # fmt: skip
    image_signatures: Path = _setting(
        Path(), "folder of signatures, as `cosign download signature` prints them, that are looked at first",
        kind="path", metavar="FOLDER",
    )  # fmt: skip
    image_credentials: Path = _setting(
        Path(), "config.json of `docker login` with the credentials of registries that are asked for signatures",
        kind="path", metavar="FILE",
    )  # fmt: skip
    image_ca: Path = _setting(
        Path(), "certificates to trust for registries besides the usual ones, PEM", kind="path", metavar="FILE"
    )
    picod_image: str = _setting("wakegate/picod:0.1.0", "image of CodeInterpreters that name no image", kind="text")
    sandbox_start_timeout: float = _setting(
        120.0, "how long a pod that a session waits for may take to become ready", kind="duration", low=1
    )
    isolation: str = _setting(
        "bubblewrap", "how local sandboxes are isolated; `process` gives NO isolation and is for trusted code only",
        kind="text", choices=("bubblewrap", "process"),
    )  # fmt: skip
    sandbox_uids: str = _setting(
        "auto",
        "local engine: user ids of this machine for sandboxes, one each, that nothing else has, FIRST-LAST; auto: a"
        " free range, where root runs the gateway; shared: all have the gateway's user",
        kind="text",
        metavar="RANGE",
    )
    sandbox_python: Path = _setting(
        Path(),
        "virtual environment that provides user code's python3 (default: .venv-sandbox beside the checkout)",
        kind="path",
    )
    warm_pool: int = _setting(3, "warm sandboxes of the built-in my-interpreter", kind="int", low=0)
    preload: str = _setting(
        "",
        "modules imported in advance for python3 scripts and contexts of the built-in my-interpreter, e.g."
        " numpy,pandas; each warm sandbox holds them in memory twice (default: none)",
        kind="text",
        metavar="MODULES",
    )
    code_context: str = _setting(
        "warm",
        "Python context of local sandboxes: started with the sandbox (warm), on first use (lazy), or never (off);"
        " for runtimes without spec.wakegate.codeContext",
        kind="text",
        choices=("warm", "lazy", "off"),
    )
    max_sandboxes: int = _setting(
        512, "sandboxes bound to sessions on this gateway at once; beyond that 429 with Retry-After", kind="int", low=1
    )
    bookable_cpus: int = _setting(
        0,
        "local engine: cores that the sandboxes of runtimes with `resources.requests` may request in all; 0: those of"
        " the machine",
        kind="int",
        low=0,
        high=4096,
    )
    bookable_memory: int = _setting(
        0, "local engine: memory that they may request in all; 0: that of the machine", kind="size"
    )
    gpus: str = _setting(
        "auto",
        "local engine: NVIDIA GPUs that sandboxes may have, by index, and MIG instances as GPU/GI/CI, e.g. 0,1/1/0;"
        " auto: all whole ones; none",
        kind="text",
        metavar="LIST",
    )
    gpu_libraries: tuple[Path, ...] = _setting(
        (), "folder with libcuda.so.1, if it is in none of the usual ones", kind="paths", metavar="FOLDER"
    )
    token_algorithm: str = _setting(
        "EdDSA",
        "signature algorithm of tokens for picod; RS256 is for AgentCube's own executors",
        kind="text",
        choices=("EdDSA", "RS256"),
    )

    key_rotation: float = _setting(
        0.0, "age at which the signing key is replaced by a new one; 0: no rotation", kind="duration", low=0
    )
    key_settle: float = _setting(
        180.0,
        "how long a new signing key is published before it signs; kubelets update Secrets about once a minute",
        kind="duration",
        low=0,
    )

    hold_per_session: int = _setting(1024, "requests that may wait for one session's sandbox", kind="int", low=1)
    hold_total: int = _setting(8192, "requests that may wait for sandboxes in total", kind="int", low=1)
    slots_per_sandbox: int = _setting(256, "requests in flight to one sandbox; further ones queue", kind="int", low=1)

    connect_timeout: float = _setting(5.0, "timeout for connecting to a sandbox", kind="duration", low=0.001)
    request_head_timeout: float = _setting(
        30.0, "timeout for receiving a request's head from a client", kind="duration", low=0.001
    )
    request_idle_timeout: float = _setting(
        60.0, "idle timeout of a client that is sending a request body", kind="duration", low=0.001
    )
    client_read_timeout: float = _setting(
        300.0, "idle timeout of a client that reads nothing of its response", kind="duration", low=0.001
    )
    response_idle_timeout: float = _setting(
        3600.0, "idle timeout of a sandbox that has not finished its response", kind="duration", low=0.001
    )
    request_timeout: float = _setting(
        0.0, "timeout for a whole exchange, both directions; 0: no timeout", kind="duration", low=0
    )
    max_connections: int = _setting(
        0,
        "client connections open at once; beyond that the longest idle ones are closed (default: the limit of file"
        " descriptors less a reserve for sandboxes: a quarter of it, at least 256)",
        kind="int",
        low=0,
    )
    keep_alive_timeout: float = _setting(
        75.0, "how long an idle client connection stays open", kind="duration", low=0.001
    )
    shutdown_delay: float = _setting(
        1.0,
        "how long after SIGTERM requests are still accepted; readiness fails, and each response closes its connection",
        kind="duration",
        low=0,
    )
    drain_timeout: float = _setting(
        30.0, "how long requests in flight may take after shutdown_delay", kind="duration", low=0
    )

    autoscaler_tick: float = _setting(1.0, "interval between autoscaler decisions", kind="duration", low=0.05)
    cold_start_cost: float = _setting(
        0.0,
        "cost of a cold start, in seconds of an idle sandbox; 0: each runtime's targetMissRate decides",
        kind="duration",
        low=0,
    )
    price_ceiling: float = _setting(
        20_000.0,
        "most idle time of a sandbox that a pool spends to save one claim from a cold start, whatever its"
        " targetMissRate; 0: no limit",
        kind="duration",
        low=0,
    )
    wake_cost: float = _setting(
        300.0, "cost of a wake, in seconds of an idle sandbox, for advice on sessions", kind="duration", low=0
    )
    advised_hibernation: bool = _setting(
        False, "hibernate sessions before their idle timeout when their past idle times suggest it", kind="flag"
    )
    prewake: bool = _setting(False, "wake hibernated sessions shortly before a likely request", kind="flag")
    max_warm: int = _setting(
        0, "warm sandboxes over all runtimes; 0: only each runtime's pool.max applies", kind="int", low=0
    )

    sweep_interval: float = _setting(
        5.0, "interval between sweeps for idle and expired sessions", kind="duration", low=0.01
    )
    snapshots: str = _setting(
        "", "where hibernated sessions are kept: file:///FOLDER, s3://BUCKET/PREFIX, gs://..., az://..."
        " (default: parked by the local engine, without a copy)", kind="text", metavar="URL",
    )  # fmt: skip
    checkpoint_interval: float = _setting(
        300.0,
        "how often active sessions are copied in a cluster, where a node can be lost, if files changed since; a"
        " runtime's checkpointInterval comes first, on every engine; 0: never",
        kind="duration",
        low=0,
    )
    snapshot_max_size: int = _setting(
        4 << 30,
        "largest snapshot, compressed; a session that exceeds it is not hibernated; 0: no limit",
        kind="size",
        low=0,
    )
    disk_reserve: int = _setting(
        1 << 30, "local engine: free disk space below which the sandbox that fills the disk is ended; 0: never",
        kind="size", low=0,
    )  # fmt: skip
    egress_refuse: str = _setting(
        "",
        "networks that no sandbox reaches through the egress proxy whatever its runtime allows, comma-separated, such"
        " as a cluster's pods and services; loopback, link-local and metadata addresses never are",
        kind="text",
        metavar="NETWORKS",
    )
    egress_port: int = _setting(
        0,
        "in a cluster, the port on which sandboxes reach out through gateways to what spec.wakegate.egress names;"
        " 0: names in it open nothing",
        kind="int",
        low=0,
        high=65535,
    )
    egress_address: str = _setting(
        "",
        "how sandboxes in a cluster reach --egress-port: a Service's name with its port, which gateways look up",
        kind="text",
        metavar="HOST:PORT",
    )
    package_cache: int = _setting(
        5 << 30,
        "size of the cache of packages that sandboxes download from PyPI; 0: none, and TLS to it is not ended",
        kind="size",
        low=0,
    )
    package_index: str = _setting(
        "https://pypi.org/simple",
        "where the packages of agents that are deployed from code come from, as pip's --index-url; the sandbox that"
        " installs them reaches this host alone",
        kind="text",
        metavar="URL",
    )
    egress_ca: Path = _setting(
        Path(),
        "certificates by which hosts that sandboxes reach are verified where TLS is ended for them, besides the"
        " machine's; sandboxes trust them too, PEM",
        kind="path",
        metavar="FILE",
    )
    snapshot_key_file: Path = _setting(
        Path(), "file of snapshot encryption keys: lines of NAME:BASE64 of 32 bytes; the first key encrypts",
        kind="path", metavar="FILE",
    )  # fmt: skip
    hibernated_retention: float = _setting(
        604800.0, "how long a hibernated session is kept before it is terminated", kind="duration", low=1
    )
    terminated_retention: float = _setting(
        3600.0, "how long the record of a terminated session is kept", kind="duration", low=0
    )

    allowed_origins: str = _setting(
        "",
        "origins of web pages that may use the gateway and read its answers (CORS), comma-separated (its own pages"
        " always may; those of this machine may use it)",
        kind="text",
        metavar="URLS",
    )
    allowed_hosts: str = _setting(
        "",
        "host names that requests may use for the gateway, comma-separated, besides this machine's and --host; * allows"
        " any (default: any, unless it listens on loopback)",
        kind="text",
        metavar="NAMES",
    )
    strip_headers: str = _setting(
        "x-api-key,api-key,x-auth-request-user,x-auth-request-email,x-auth-request-groups,x-auth-request-access-token,"
        "x-auth-request-preferred-username,x-auth-request-redirect,x-forwarded-access-token,x-forwarded-user,"
        "x-forwarded-email,x-forwarded-groups,x-forwarded-preferred-username,x-amzn-oidc-accesstoken,"
        "x-amzn-oidc-data,x-amzn-oidc-identity,x-goog-iap-jwt-assertion,cf-access-jwt-assertion,remote-user",
        "request headers that are not forwarded to sandboxes, comma-separated; replaces the default",
        kind="text",
        metavar="NAMES",
    )
    domain: str = _setting(
        "",
        "domain below which ports of sessions have host names, https://PORT-SESSION.DOMAIN; no other name below it is"
        " served (default: ports are reached by path only)",
        kind="text",
        metavar="NAME",
    )
    trusted_proxies: str = _setting(
        "",
        "addresses and networks of the proxies in front, comma-separated, whose X-Forwarded-* and Forwarded fields say"
        " who the client is and by which name and scheme it came (default: no address is trusted)",
        kind="text",
        metavar="NETWORKS",
    )
    unauthenticated_rate: int = _setting(
        20,
        "requests per second without a valid key that one client address (of IPv6: its /64) gets an ordinary answer to,"
        " where keys are asked for; beyond it 429; 0: any number",
        kind="int",
        low=0,
    )
    auth: bool = _setting(
        False,
        "ask every request for an API key or token, which `wakegate keys create` makes; implied by --admin-key-file"
        " and --oidc-issuer",
        kind="flag",
    )
    admin_key_file: Path = _setting(
        Path(), "file with a key of the role admin, to make the first ones with; read again when it changes",
        kind="path", metavar="FILE",
    )  # fmt: skip
    tenants: Path = _setting(
        Path(), "limits of tenants, YAML or TOML: `defaults`, and `tenants` by name; what the API sets replaces them",
        kind="path", metavar="FILE",
    )  # fmt: skip
    insecure_no_auth: bool = _setting(
        False, "listen beyond this machine without authentication: whoever reaches the port may do anything",
        kind="flag",
    )  # fmt: skip
    oidc_issuer: str = _setting(
        "",
        "OpenID Connect issuers whose tokens are taken, comma-separated, as their tokens' claim iss names them; implies"
        " --auth; needs --oidc-role-map",
        kind="text",
        metavar="URLS",
    )
    oidc_audience: str = _setting(
        "wakegate", "names of this gateway in tokens' claim aud, comma-separated; others' are refused", kind="text"
    )
    oidc_tenant_claim: str = _setting(
        "tenant",
        "claims that name the tenant, comma-separated, the first that a token has; dots lead into objects; =NAME for"
        " one tenant",
        kind="text",
        metavar="CLAIMS",
    )
    oidc_roles_claim: str = _setting(
        "groups", "claims with groups for --oidc-role-map, comma-separated, the first that a token has", kind="text",
        metavar="CLAIMS",
    )  # fmt: skip
    oidc_role_map: str = _setting(
        "",
        "roles by group, comma-separated GROUP=ROLE; a final * stands for any ending; of several roles the most"
        " powerful counts, without one nothing is allowed",
        kind="text",
        metavar="PAIRS",
    )
    oidc_user_claim: str = _setting(
        "sub",
        "claim that names the person, whose sessions the tenant's others do not see; `=` for nobody: they are the"
        " tenant's",
        kind="text",
        metavar="CLAIM",
    )
    oidc_jwks_url: str = _setting(
        "", "key set of the only --oidc-issuer (default: from its discovery document)", kind="text", metavar="URL"
    )
    oidc_ca: Path = _setting(
        Path(), "certificates to trust for --oidc-issuer besides the usual ones, PEM", kind="path", metavar="FILE"
    )
    picture_max_side: int = _setting(
        1568,
        "longest side, in pixels, of pictures that tools return to models; larger ones are scaled down",
        kind="int",
        low=16,
    )

    task_lease: float = _setting(
        20.0, "time after which a task whose gateway has died is begun again by another one", kind="duration", low=1
    )
    task_retention: float = _setting(
        86400.0, "how long a task that is over is kept, with its result; dead letters 7 days at least",
        kind="duration", low=1,
    )  # fmt: skip
    task_queue: int = _setting(
        1000, "tasks of one tenant and agent that may wait or run; more are refused with 429", kind="int", low=1
    )
    task_bytes: int = _setting(
        256 << 20, "bytes that the tasks of one tenant may hold in the store, with their results", kind="size", low=4096
    )
    webhook_allow: str = _setting(
        "",
        "networks of this machine and private ones, comma-separated, to which webhooks of tasks may be sent besides the"
        " internet (default: none)",
        kind="text",
        metavar="NETWORKS",
    )
    tasks_at_once: int = _setting(100, "tasks that one gateway runs at a time", kind="int", low=1)

    usage_interval: float = _setting(
        10.0,
        "interval between writes of what tenants have used; a gateway that is killed loses at most this much",
        kind="duration",
        low=0.1,
    )
    usage_session_retention: float = _setting(
        3_024_000.0, "how long /v1/usage has what single sessions used", kind="duration", low=3600
    )
    usage_retention: float = _setting(
        34_560_000.0, "how long /v1/usage has totals of tenants and runtimes", kind="duration", low=3600
    )
    prices: Path = _setting(
        Path(), "TOML file of prices, with which /v1/usage shows costs; docs/usage.md has an example",
        kind="path", metavar="FILE",
    )  # fmt: skip
    log_level: str = _setting(
        "info", "lowest severity that is logged", kind="text", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _setting("console", "format of log lines", kind="text", choices=("console", "json"))
    access_log: bool = _setting(False, "log one line per request", kind="flag")
    audit_log: str = _setting(
        "", "file of the audit trail, a line of JSON for each decision; - writes to stdout (default: none)",
        kind="text", metavar="FILE",
    )  # fmt: skip
    audit_max_bytes: int = _setting(
        64 << 20, "size at which the audit file is put aside and another one begun", kind="size", low=4096
    )
    audit_keep: int = _setting(
        16, "full audit files that are kept; the oldest is deleted then; 0: all", kind="int", low=0
    )
    audit_on_error: str = _setting(
        "refuse",
        "while the audit trail cannot be written: refuse what has to be in it with 503, or continue and tell of the gap"
        " later",
        kind="text",
        choices=("refuse", "continue"),
    )
    audit_content: str = _setting(
        "hash",
        "what the audit trail has of code, commands and tool calls: their SHA-256, or the text without credentials",
        kind="text",
        choices=("hash", "text"),
    )
    otlp_endpoint: str = _setting(
        "", "OTLP/HTTP receiver for OpenTelemetry spans, e.g. http://127.0.0.1:4318 (needs the extra `otel`)",
        kind="text", metavar="URL",
    )  # fmt: skip


def requires_identity(settings: Settings) -> bool:
    """Whether requests have to say who they come from."""
    return settings.auth or settings.admin_key_file != Path() or bool(settings.oidc_issuer)


def make_state_dir(path: Path) -> None:
    """Create the state folder with mode 0700. Raises SettingsError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError([f"--state-dir {path}: cannot be created: {error.strerror}"]) from error


def probe_state_dir(path: Path) -> str:
    """Write and delete a 4 KiB file in the state folder. Returns the problem, or "" if there is none. Blocks."""
    probe = path / f".probe-{os.getpid()}"
    try:
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return f"the state directory {path} cannot be written to: {error.strerror}"
    return ""
