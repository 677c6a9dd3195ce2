"""What sandboxes are made of, on either engine, and the tokens by which their picod knows the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Sandboxes:
    """Which runtimes there are, and what the sandboxes of one gateway may have of its machine."""

    engine: str = setting("local", "what runs the sandboxes", kind="text", choices=("local", "kubernetes"))
    runtime: tuple[Path, ...] = setting(
        (), "runtime manifest or a folder of manifests, in addition to the built-in my-interpreter; may be repeated",
        kind="paths", metavar="FILE_OR_FOLDER",
    )  # fmt: skip
    no_default_runtime: bool = setting(False, "serve only the runtimes of --runtime", kind="flag")
    runtime_sources: tuple[Path, ...] = setting(
        (), "folder that manifests may refer to in spec.wakegate.source and python, besides their own; may be repeated",
        kind="paths", metavar="FOLDER",
    )  # fmt: skip
    warm_pool: int = setting(3, "warm sandboxes of the built-in my-interpreter", kind="int", low=0)
    preload: str = setting(
        "",
        "modules imported in advance for python3 scripts and contexts of the built-in my-interpreter, e.g."
        " numpy,pandas; each warm sandbox holds them in memory twice (default: none)",
        kind="text",
        metavar="MODULES",
    )
    code_context: str = setting(
        "warm",
        "Python context of local sandboxes: started with the sandbox (warm), on first use (lazy), or never (off);"
        " for runtimes without spec.wakegate.codeContext",
        kind="text",
        choices=("warm", "lazy", "off"),
    )
    sandbox_python: Path = setting(
        Path(),
        "virtual environment that provides user code's python3 (default: .venv-sandbox beside the checkout)",
        kind="path",
    )
    picture_max_side: int = setting(
        1568,
        "longest side, in pixels, of pictures that tools return to models; larger ones are scaled down",
        kind="int",
        low=16,
    )
    max_sandboxes: int = setting(
        512, "sandboxes bound to sessions on this gateway at once; beyond that 429 with Retry-After", kind="int", low=1
    )
    sandbox_start_timeout: float = setting(
        120.0, "how long a pod that a session waits for may take to become ready", kind="duration", low=1
    )
    isolation: str = setting(
        "bubblewrap", "how local sandboxes are isolated; `process` gives NO isolation and is for trusted code only",
        kind="text", choices=("bubblewrap", "process"),
    )  # fmt: skip
    sandbox_uids: str = setting(
        "auto",
        "local engine: user ids of this machine for sandboxes, two each, that nothing else has, FIRST-LAST; auto: a"
        " free range, where root runs the gateway; shared: all have the gateway's user",
        kind="text",
        metavar="RANGE",
    )
    bookable_cpus: int = setting(
        0,
        "local engine: cores that the sandboxes of runtimes with `resources.requests` may request in all; 0: those of"
        " the machine",
        kind="int",
        low=0,
        high=4096,
    )
    bookable_memory: int = setting(
        0, "local engine: memory that they may request in all; 0: that of the machine", kind="size"
    )
    gpus: str = setting(
        "auto",
        "local engine: NVIDIA GPUs that sandboxes may have, by index, and MIG instances as GPU/GI/CI, e.g. 0,1/1/0;"
        " auto: all whole ones; none",
        kind="text",
        metavar="LIST",
    )
    gpu_libraries: tuple[Path, ...] = setting(
        (), "folder with libcuda.so.1, if it is in none of the usual ones", kind="paths", metavar="FOLDER"
    )
    disk_reserve: int = setting(
        1 << 30, "local engine: free disk space below which the sandbox that fills the disk is ended; 0: never",
        kind="size", low=0,
    )  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """How the gateway's requests to picod are signed."""

    token_algorithm: str = setting(
        "EdDSA",
        "signature algorithm of tokens for picod; RS256 is for AgentCube's own executors",
        kind="text",
        choices=("EdDSA", "RS256"),
    )
    key_rotation: float = setting(
        0.0, "age at which the signing key is replaced by a new one; 0: no rotation", kind="duration", low=0
    )
    key_settle: float = setting(
        180.0,
        "how long a new signing key is published before it signs; kubelets update Secrets about once a minute",
        kind="duration",
        low=0,
    )
