"""NVIDIA GPUs of this machine: the device nodes and libraries that a sandbox with one of them sees, and nothing else's.

A GPU is whole, by its index (`0`), or a MIG instance, by its index, GPU instance and compute instance (`0/1/0`), as
they are named below /proc/driver/nvidia/capabilities. A sandbox gets the nodes of its own: without those of another,
CUDA finds no other. The folders are arguments, so that what needs no GPU can be tested without one.
Sources: NVIDIA's driver README, "Device nodes"; MIG User Guide, "Device nodes and capabilities".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

AUTO, NONE = "auto", "none"
_WHOLE = re.compile(r"[0-9]{1,3}")
_MIG = re.compile(r"([0-9]{1,3})/([0-9]{1,3})/([0-9]{1,3})")
_MINOR = re.compile(r"DeviceFileMinor: ([0-9]{1,6})")
_NEEDED, _OPTIONAL = ("nvidiactl", "nvidia-uvm"), ("nvidia-uvm-tools", "nvidia-modeset")
_LIBRARY = "libcuda.so.1"
# Where distributions and images put the driver's libraries; what lies below /usr every sandbox sees already.
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
)


@dataclass(frozen=True, slots=True)
class Gpus:
    """What sandboxes may have. `nodes`: of each GPU, paths inside -> on this machine. `lacking`: why there is none."""

    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    libraries: str = ""
    lacking: str = ""

    def devices(self, names: Iterable[str]) -> dict[str, str]:
        """The nodes of these, paths inside -> on this machine."""
        return {inside: path for name in names for inside, path in self.nodes[name].items()}

    def environment(self, names: Iterable[str]) -> dict[str, str]:
        """Variables for programs that have these."""
        chosen = ",".join(names)
        return {"NVIDIA_VISIBLE_DEVICES": chosen, "LD_LIBRARY_PATH": self.libraries} if chosen else {}


NO_GPUS = Gpus(lacking="this gateway was not told of any GPU")


def find_gpus(
    setting: str,
    *,
    dev: Path = Path("/dev"),
    driver: Path = Path("/proc/driver/nvidia"),
    libraries: Iterable[str] = LIBRARIES,
) -> Gpus:
    """The GPUs that the setting names: `auto` all whole ones, `none`, or a list such as `0,1/1/0,1/2/0`.

    Raises ValueError with what is missing for one that is named.
    """
    if setting == NONE:
        return Gpus(lacking="--gpus none: this gateway gives sandboxes no GPU")
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if setting == AUTO:
        names = sorted(
            (name[6:] for name in _listed(dev) if _WHOLE.fullmatch(name[6:]) and name[:6] == "nvidia"), key=int
        )
    try:
        if not names:
            raise ValueError(f"there is no {dev}/nvidia0: this machine has no NVIDIA GPU, or no driver for it")
        folder = _library_folder(libraries)
        nodes = {name: _nodes(name, dev, driver) for name in names}
        _check_apart(names)
    except ValueError as error:
        if setting != AUTO:
            raise
        return Gpus(lacking=str(error))
    return Gpus(nodes, folder)


def _nodes(name: str, dev: Path, driver: Path) -> dict[str, str]:
    mig = _MIG.fullmatch(name)
    if mig is None and not _WHOLE.fullmatch(name):
        raise ValueError(f"{name[:40]!r} is no GPU; expected an index such as 0, or GPU/GI/CI such as 0/1/0")
    index = mig[1] if mig is not None else name
    own = [f"nvidia{int(index)}"]
    if mig is not None:
        instance = driver / "capabilities" / f"gpu{mig[1]}" / "mig" / f"gi{mig[2]}"
        for access in (instance / "access", instance / f"ci{mig[3]}" / "access"):
            own.append(f"nvidia-caps/nvidia-cap{_minor(access)}")
    missing = [str(dev / each) for each in (*own, *_NEEDED) if not (dev / each).exists()]
    if missing:
        raise ValueError(
            f"GPU {name}: {', '.join(missing)} is not there; load the driver (nvidia-modprobe -u -c {int(index)})"
        )
    shown = [*own, *_NEEDED, *(each for each in _OPTIONAL if (dev / each).exists())]
    return {f"/dev/{each}": os.path.realpath(dev / each) for each in shown}


def _minor(access: Path) -> int:
    """The minor number of the node that gives the right to a MIG instance."""
    try:
        found = _MINOR.search(access.read_text())
    except OSError:
        found = None
    if found is None:
        raise ValueError(f"{access} is not there: there is no such MIG instance (nvidia-smi mig -lci)")
    return int(found[1])


def _library_folder(folders: Iterable[str]) -> str:
    places = tuple(folders)
    for folder in places:
        if os.path.exists(os.path.join(folder, _LIBRARY)):
            return folder
    raise ValueError(f"{_LIBRARY} is in none of {', '.join(places)}; name its folder with --gpu-libraries")


def _check_apart(names: list[str]) -> None:
    """A GPU is given whole or in instances, not both, and each once."""
    whole = {name for name in names if "/" not in name}
    for name in names:
        if names.count(name) > 1 or ("/" in name and name.partition("/")[0] in whole):
            raise ValueError(f"GPU {name} is named twice, or as a whole and in instances")


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
