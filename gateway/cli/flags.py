"""Command line flags: one for each setting, in groups, with its unit and default."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from gateway.core.settings import Settings
from gateway.core.units import readable_size

# Every setting by topic; a test checks that none is missing.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "where it listens": (
        "host", "port", "workers", "worker_port", "tls_cert", "tls_key", "tls_client_ca",
        "max_connections", "allowed_origins", "allowed_hosts", "strip_headers", "trusted_proxies", "domain",
    ),
    "runtimes and sandboxes": (
        "engine", "runtime", "no_default_runtime", "runtime_sources", "warm_pool", "preload", "code_context",
        "sandbox_python", "picture_max_side", "max_sandboxes", "sandbox_start_timeout", "isolation", "sandbox_uids",
        "bookable_cpus", "bookable_memory", "gpus", "gpu_libraries",
        "disk_reserve", "egress_refuse", "egress_ca", "egress_port", "egress_address", "package_cache", "package_index",
    ),
    "records, and several gateways": (
        "state_dir", "store", "store_prefix", "advertise", "takeover_after", "sweep_interval", "terminated_retention",
    ),
    "hibernation": (
        "snapshots", "checkpoint_interval", "snapshot_max_size", "snapshot_key_file", "hibernated_retention",
    ),
    "warm pools": (
        "autoscaler_tick", "cold_start_cost", "price_ceiling", "max_warm", "wake_cost", "advised_hibernation",
        "prewake",
    ),
    "who may use it": (
        "auth", "admin_key_file", "tenants", "insecure_no_auth", "oidc_issuer", "oidc_audience", "oidc_tenant_claim",
        "oidc_roles_claim", "oidc_role_map", "oidc_user_claim", "oidc_jwks_url", "oidc_ca", "unauthenticated_rate",
    ),
    "queues and timeouts": (
        "hold_per_session", "hold_total", "slots_per_sandbox", "connect_timeout", "request_head_timeout",
        "request_idle_timeout", "client_read_timeout", "response_idle_timeout", "request_timeout",
        "keep_alive_timeout", "shutdown_delay", "drain_timeout",
    ),
    "tasks of agents": ("task_lease", "task_retention", "task_queue", "task_bytes", "tasks_at_once", "webhook_allow"),
    "usage": ("usage_interval", "usage_session_retention", "usage_retention", "prices"),
    "tokens": ("token_algorithm", "key_rotation", "key_settle"),
    "Kubernetes": (
        "kubeconfig", "kube_namespaces", "kube_gateway_namespace", "kube_concurrency", "kube_spread", "kube_scheduler",
        "kube_runtime_class", "kube_claims_tenant", "kube_trust_manifests", "picod_image",
    ),
    "images of sandboxes on Kubernetes": (
        "image_registries", "image_digests", "image_keys", "image_signatures", "image_credentials", "image_ca",
    ),
    "logs and traces": ("log_level", "log_format", "access_log", "otlp_endpoint"),
    "audit trail": ("audit_log", "audit_max_bytes", "audit_keep", "audit_on_error", "audit_content"),
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add a flag per setting (or for those of `only`), --config and --agentscope-env.

    Values stay text: `load` parses all sources and reports all errors.
    """
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (also WAKEGATE_CONFIG)")
    parser.add_argument(
        "--agentscope-env", metavar="FILE",
        help="env file of AgentScope Runtime's sandbox server, as settings (also WAKEGATE_AGENTSCOPE_ENV)",
    )  # fmt: skip
    known = {setting.name: setting for setting in fields(Settings)}
    for title, names in GROUPS.items():
        wanted = [name for name in names if only is None or name in only]
        if wanted:
            group = parser.add_argument_group(title)
            for name in wanted:
                _add(group, known[name])


def _add(group: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    meta = setting.metadata
    flag = "--" + setting.name.replace("_", "-")
    text = (meta["help"] + _default_text(setting)).replace("%", "%%")  # argparse formats help with %
    if meta["kind"] == "flag":
        # Not store_true: an absent flag must stay None, so that the variable or the file can set it.
        group.add_argument(flag, action="store_const", const="true", help=text)
    elif meta["kind"] == "paths":
        group.add_argument(flag, action="append", metavar=meta["metavar"], help=text)
    else:
        metavar = {"INT": "N", "TEXT": "NAME"}.get(meta["metavar"], meta["metavar"])
        group.add_argument(flag, metavar="|".join(meta["choices"]) or metavar, help=text)


def _default_text(setting: Field[Any]) -> str:
    if setting.default in ((), "", Path(), False) or setting.default is MISSING:
        return ""
    return f" (default: {readable_default(setting)})"


def readable_default(setting: Field[Any]) -> str:
    """The default as a person would write it: 8h, 4Gi, 512."""
    value: Any = setting.default
    match setting.metadata["kind"]:
        case "duration":
            return _readable_duration(value)
        case "size":
            return readable_size(value)
    return str(value)


def _readable_duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
