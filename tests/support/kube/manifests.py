"""The shipped manifests, built by kustomize and looked up by kind and name."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]


MANIFESTS = ROOT / "manifests"


@lru_cache
def built(overlay: str) -> list[Any]:
    """What `kubectl apply -k` would send."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", MANIFESTS / "overlays" / overlay], capture_output=True, check=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(overlay: str, kind: str, name: str, namespace: str = "wakegate") -> Any:
    (found,) = [
        d for d in built(overlay)
        if (d["kind"], d["metadata"]["name"], d["metadata"].get("namespace", namespace)) == (kind, name, namespace)
    ]  # fmt: skip
    return found
