"""Who may use the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Access:
    """Keys, OpenID Connect, and what tenants may use."""

    auth: bool = setting(
        False,
        "ask every request for an API key or token, which `wakegate keys create` makes; implied by --admin-key-file"
        " and --oidc-issuer",
        kind="flag",
    )
    admin_key_file: Path = setting(
        Path(), "file with a key of the role admin, to make the first ones with; read again when it changes",
        kind="path", metavar="FILE",
    )  # fmt: skip
    tenants: Path = setting(
        Path(), "limits of tenants, YAML or TOML: `defaults`, and `tenants` by name; what the API sets replaces them",
        kind="path", metavar="FILE",
    )  # fmt: skip
    insecure_no_auth: bool = setting(
        False, "listen beyond this machine without authentication: whoever reaches the port may do anything",
        kind="flag",
    )  # fmt: skip
    oidc_issuer: str = setting(
        "",
        "OpenID Connect issuers whose tokens are taken, comma-separated, as their tokens' claim iss names them; implies"
        " --auth; needs --oidc-role-map",
        kind="text",
        metavar="URLS",
    )
    oidc_audience: str = setting(
        "wakegate", "names of this gateway in tokens' claim aud, comma-separated; others' are refused", kind="text"
    )
    oidc_tenant_claim: str = setting(
        "tenant",
        "claims that name the tenant, comma-separated, the first that a token has; dots lead into objects; =NAME for"
        " one tenant",
        kind="text",
        metavar="CLAIMS",
    )
    oidc_roles_claim: str = setting(
        "groups", "claims with groups for --oidc-role-map, comma-separated, the first that a token has", kind="text",
        metavar="CLAIMS",
    )  # fmt: skip
    oidc_role_map: str = setting(
        "",
        "roles by group, comma-separated GROUP=ROLE; a final * stands for any ending; of several roles the most"
        " powerful counts, without one nothing is allowed",
        kind="text",
        metavar="PAIRS",
    )
    oidc_user_claim: str = setting(
        "sub",
        "claim that names the person, whose sessions the tenant's others do not see; `=` for nobody: they are the"
        " tenant's",
        kind="text",
        metavar="CLAIM",
    )
    oidc_jwks_url: str = setting(
        "", "key set of the only --oidc-issuer (default: from its discovery document)", kind="text", metavar="URL"
    )
    oidc_ca: Path = setting(
        Path(), "certificates to trust for --oidc-issuer besides the usual ones, PEM", kind="path", metavar="FILE"
    )
    unauthenticated_rate: int = setting(
        20,
        "requests per second without a valid key that one client address (of IPv6: its /64) gets an ordinary answer to,"
        " where keys are asked for; beyond it 429; 0: any number",
        kind="int",
        low=0,
    )
