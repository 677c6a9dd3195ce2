"""Kubernetes' service accounts: tokens as a cluster makes them, keys that only those get who show one."""

from __future__ import annotations

import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from agentcube import CodeInterpreterClient

from gateway.core.errors import PermissionDeniedError, UnauthorizedError, UnavailableError
from gateway.core.identity import Role
from gateway.core.settings import Settings
from gateway.identity.oidc import OIDCVerifier, make_verifier
from gateway.testing import ManualClock
from tests.support.certificates import Authority
from tests.support.cluster_issuer import ClusterIssuer, cluster_issuer
from tests.support.serve import serve

CLUSTER = "https://kubernetes.default.svc.cluster.local"
ROLES = "system:serviceaccount:agents:*=member,system:serviceaccount:monitoring:prometheus=operator"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """What the kubelet mounts: the pod's own token and the cluster's CA."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("own-token\n")
    return folder


@pytest.fixture
def cluster(pod: Path) -> Iterator[ClusterIssuer]:
    """An API server with a certificate of the cluster's CA, which gives its keys to accounts only."""
    authority = Authority(pod, "ca")
    authority.file.rename(pod / "ca.crt")
    pair = authority.issue("apiserver")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert, pair.key)
    with cluster_issuer(ClusterIssuer(CLUSTER, "Bearer own-token"), tls) as issuer:
        yield issuer


def verifier_of(cluster: ClusterIssuer, pod: Path, clock: ManualClock | None = None) -> OIDCVerifier:
    settings = Settings(
        oidc_issuer=cluster.name,
        oidc_jwks_url=cluster.url + "/openid/v1/jwks",
        oidc_tenant_claim="kubernetes.io.namespace",
        oidc_roles_claim="sub",
        oidc_role_map=ROLES,
        oidc_user_claim="=",
    )
    made = make_verifier(settings, clock or ManualClock(time.time()), pod)
    assert made is not None
    return made


async def test_account_is_known_by_its_namespace_and_name(cluster: ClusterIssuer, pod: Path) -> None:
    """The namespace is the tenant; the role is by account; keys came with the pod's token, over the cluster's CA."""
    verifier = verifier_of(cluster, pod)
    agent = await verifier.verify(cluster.token("agents", "agent"))
    assert (agent.role, agent.tenant, agent.user) == (Role.MEMBER, "agents", "")
    assert agent.subject.startswith("oidc:system:serviceaccount:agents:agent@")
    scraper = await verifier.verify(cluster.token("monitoring", "prometheus"))
    assert scraper.role is Role.OPERATOR
    assert cluster.asked == [("/openid/v1/jwks", "Bearer own-token")]
    with pytest.raises(PermissionDeniedError, match="system:serviceaccount:monitoring:other"):
        await verifier.verify(cluster.token("monitoring", "other"))
    with pytest.raises(UnauthorizedError, match="aud"):
        await verifier.verify(cluster.token("agents", "agent", audience=CLUSTER))


async def test_renewed_token_of_the_pod_is_shown_and_new_keys_are_found(cluster: ClusterIssuer, pod: Path) -> None:
    """The kubelet writes another token each hour; a rotated key is fetched when a token first names it."""
    clock = ManualClock(time.time())
    verifier = verifier_of(cluster, pod, clock)
    await verifier.verify(cluster.token("agents", "agent"))
    cluster.rotate("key-2")
    cluster.wanted = "Bearer renewed"
    clock.advance(10)
    with pytest.raises(UnavailableError, match="status 401"):
        await verifier.verify(cluster.token("agents", "agent"))
    (pod / "token").write_text("renewed")
    clock.advance(10)
    await verifier.verify(cluster.token("agents", "agent"))
    await verifier.verify(cluster.token("agents", "agent", kid="key-1"))


async def test_other_issuers_never_see_the_pods_token(pod: Path) -> None:
    """Nor does a host whose name only begins like the cluster's."""
    with cluster_issuer(ClusterIssuer()) as other:
        for name in (other.url, "https://kubernetes.default.svcx.example", "https://kubernetes.default.example"):
            other.name = name
            await verifier_of(other, pod).verify(other.token("agents", "agent"))
    assert {authorization for _, authorization in other.asked} == {""}


@pytest.mark.processes
def test_agentcubes_sdk_uses_its_pods_token(tmp_path: Path) -> None:
    """Unmodified: `auth_token` creates and ends sessions, and the router's URL has it for requests to the sandbox."""
    with cluster_issuer(ClusterIssuer()) as cluster:
        flags = {
            "--oidc-issuer": cluster.url, "--oidc-tenant-claim": "kubernetes.io.namespace", "--oidc-roles-claim": "sub",
            "--oidc-role-map": ROLES, "--oidc-user-claim": "=",
        }  # fmt: skip
        with serve(tmp_path / "state", *(part for pair in flags.items() for part in pair)) as server:
            token = cluster.token("agents", "agent")
            router = server.url.replace("://", f"://pod:{token}@")
            with CodeInterpreterClient(router_url=router, workload_manager_url=server.url, auth_token=token) as client:
                assert client.execute_command("echo yes") == "yes\n"
                caller = server.client.get("/v1/caller", headers={"authorization": f"Bearer {token}"}).json()
                assert caller["tenant"] == "agents"
                with pytest.raises(requests.HTTPError, match="401"):
                    CodeInterpreterClient(
                        router_url=server.url, workload_manager_url=server.url,
                        auth_token=cluster.token("agents", "agent", audience="another"),
                    )  # fmt: skip
    warnings.resetwarnings()
