"""`wakegate doctor` as a person runs it, against clusters that lack something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kube.clusters import REAL, in_thread
from tests.support.kube.manifests import MANIFESTS, one
from tests.support.kube.served import INTERPRETER, enforce_roles, lend
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster in which all is well."""
    with in_thread(hollow=True) as made:
        spec = one("quickstart", "NetworkPolicy", "wakegate-sandboxes", "wakegate-sandboxes")["spec"]
        made.call(lambda: made.create("networkpolicies", "wakegate-sandboxes", namespace="default", spec=spec))
        enforce_roles(made)
        if not REAL:  # the right to read it is none too many
            made.call(lambda: lend(made, "lent", {"k": "sk-0123456789"}, to="default/*", hosts="api.example.com"))
        yield made


def doctor(folder: Path, *flags: str) -> tuple[int, str]:
    """Exit status, and what it said."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    argv = [sys.executable, "-m", "gateway", "doctor", "--port", "0", "--state-dir", str(folder / "state"), *flags]
    (folder / "state").mkdir(exist_ok=True)
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=50)
    return done.returncode, done.stdout + done.stderr


def test_doctor_reports_no_problem_in_a_good_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """All checks pass; what is only a warning is marked so, and the exit status is 0."""
    snapshots = ["--snapshots", f"file://{tmp_path}/snapshots"]
    status, said = doctor(
        tmp_path, "--engine", "kubernetes", "--kubeconfig", str(cluster.kubeconfig(tmp_path)), *snapshots
    )
    assert (status, "FAIL" in said) == (0, False), said
    for line in ("Kubernetes: v1.34.", "rights in default: all there", "rights in wakegate: all there",
                 "least right in default: nothing more", "least right in wakegate: nothing more",
                 "codeinterpreters in default: 0 there", "network policy in default: is there",
                 "snapshots: can be put, read and deleted"):  # fmt: skip
        assert f"ok    {line}" in said
    assert "warn  session store: sqlite" in said


def test_doctor_names_each_problem_and_its_fix(cluster: Cluster, tmp_path: Path) -> None:
    """A missing right, a missing policy, a runtime that is not ready, a Redis that does not answer: all at once."""
    cluster.api.denied.add(("patch", "pods"))
    policies = cluster.call(lambda: cluster.objects.all(BY_PLURAL["networkpolicies"]))
    cluster.call(lambda: cluster.delete("networkpolicies", "default", "wakegate-sandboxes"))
    cluster.call(lambda: cluster.create("codeinterpreters", "sad", namespace="default", spec=INTERPRETER))
    try:
        config = str(cluster.kubeconfig(tmp_path))
        redis = ["--store", "redis://127.0.0.1:1/0"]
        status, said = doctor(tmp_path, "--engine", "kubernetes", "--kubeconfig", config, *redis)
    finally:
        cluster.api.denied.clear()
        cluster.call(lambda: cluster.delete("codeinterpreters", "default", "sad"))
        cluster.call(
            lambda: cluster.create(
                "networkpolicies", "wakegate-sandboxes", namespace="default", spec=policies[0]["spec"]
            )
        )
    assert status == 1
    assert "FAIL  rights in default: missing: patch pods\n      kubectl apply -k manifests/sandboxes" in said
    assert "warn  network policy in default: wakegate-sandboxes is not there" in said
    assert "warn  CodeInterpreter default/sad: no gateway has written its status" in said
    assert "FAIL  session store: " in said
    assert (MANIFESTS / "sandboxes" / "kustomization.yaml").exists()


def test_doctor_checks_the_rights_of_a_router(cluster: Cluster, tmp_path: Path) -> None:
    """In the namespaces whose Sandboxes it routes, and says how they are granted."""
    flags = ("--engine", "kubernetes", "--kubeconfig", str(cluster.kubeconfig(tmp_path)))
    status, said = doctor(tmp_path, *flags, "--kube-router-tenants", "agents=acme")
    assert status == 1
    wanted = "FAIL  rights of a router in agents: missing: list sandboxes, watch sandboxes, patch sandboxes\n"
    assert wanted + "      kubectl apply -k manifests/sandbox-router with `namespace: agents`" in said


def test_doctor_reports_rights_beyond_need(cluster: Cluster, tmp_path: Path) -> None:
    """A Role that somebody widened is a warning that names what it gives."""
    assert cluster.api.roles is not None
    wide = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
    cluster.api.roles["wakegate"].append(wide)
    try:
        config = str(cluster.kubeconfig(tmp_path))
        status, said = doctor(tmp_path, "--engine", "kubernetes", "--kubeconfig", config)
    finally:
        cluster.api.roles["wakegate"].remove(wide)
    assert status == 0, said
    assert "warn  least right in wakegate: this account may do more than a gateway needs: list secrets\n" in said


def test_doctor_explains_how_to_reach_a_cluster(tmp_path: Path) -> None:
    """No kubeconfig, and one whose server is unreachable: advice, no traceback."""
    status, said = doctor(tmp_path, "--engine", "kubernetes", "--kubeconfig", str(tmp_path / "none"))
    assert status == 1
    assert "FAIL  cluster: no access" in said
    away = Cluster()
    away.port = 1
    status, said = doctor(tmp_path, "--engine", "kubernetes", "--kubeconfig", str(away.kubeconfig(tmp_path)))
    assert status == 1
    assert "cannot be reached" in said
    assert "Traceback" not in said
