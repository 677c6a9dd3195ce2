"""A gateway whose sandboxes are pods (`--engine kubernetes`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Kubernetes:
    """The cluster, and how its pods are made."""

    kubeconfig: Path = setting(
        Path(),
        "kubeconfig file for --engine kubernetes (default: the pod's service account, else the user's kubeconfig)",
        kind="path",
    )
    kube_namespaces: str = setting(
        "default", "namespaces whose runtimes are served and in which sandboxes run, comma-separated", kind="text"
    )
    kube_gateway_namespace: str = setting(
        "wakegate", "namespace of the gateway, which holds the Secret with the signing keys", kind="text"
    )
    kube_concurrency: int = setting(32, "concurrent requests to the Kubernetes API", kind="int", low=1)
    kube_spread: str = setting(
        "spread",
        "how a runtime's pods are placed on the nodes",
        kind="text",
        choices=("spread", "pack", "balanced"),
    )
    kube_scheduler: str = setting("", "schedulerName of sandboxes (default: the cluster's)", kind="text")
    kube_runtime_class: str = setting("", "runtimeClassName of sandboxes (default: the cluster's)", kind="text")
    kube_claims_tenant: str = setting(
        "",
        "answer SandboxClaims of agent-sandbox in these namespaces; their sessions are this tenant's, whose keys reach"
        " them (default: not answered)",
        kind="text",
    )
    kube_router_tenants: str = setting(
        "",
        "namespaces whose Sandboxes agent-sandbox's own controllers manage, and whose router this gateway is, each with"
        " the tenant whose keys reach them, comma-separated, e.g. agents=acme (default: none)",
        kind="text",
        metavar="NAMESPACE=TENANT",
    )
    kube_trust_manifests: bool = setting(
        False,
        "allow runtimes to use what gives access to their node or to other workloads: hostPath, privileged, host"
        " networks, service accounts, Secrets",
        kind="flag",
    )
    picod_image: str = setting("wakegate/picod:0.1.0", "image of CodeInterpreters that name no image", kind="text")


@dataclass(frozen=True)
class Images:
    """Which images pods may be made from."""

    image_registries: str = setting(
        "",
        "registries, and folders of them, that images of sandboxes may come from, comma-separated, e.g."
        " ghcr.io/acme,docker.io/library (default: any)",
        kind="text",
        metavar="NAMES",
    )
    image_digests: bool = setting(False, "refuse images that are not named by digest", kind="flag")
    image_keys: tuple[Path, ...] = setting(
        (), "public key of cosign, PEM, by which images of sandboxes must be signed; if repeated, by one of them",
        kind="paths", metavar="FILE",
    )  # fmt: skip
    image_signatures: Path = setting(
        Path(), "folder of signatures, as `cosign download signature` prints them, that are looked at first",
        kind="path", metavar="FOLDER",
    )  # fmt: skip
    image_credentials: Path = setting(
        Path(), "config.json of `docker login` with the credentials of registries that are asked for signatures",
        kind="path", metavar="FILE",
    )  # fmt: skip
    image_ca: Path = setting(
        Path(), "certificates to trust for registries besides the usual ones, PEM", kind="path", metavar="FILE"
    )
