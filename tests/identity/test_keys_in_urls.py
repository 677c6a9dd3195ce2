"""Keys in URLs: refused on the gateway's own paths, and nowhere repeated."""

from __future__ import annotations

import logging

import pytest

from gateway.core.errors import BadRequestError
from gateway.core.identity import Role
from gateway.routing.url_tokens import refuse_keys
from tests.support.scripted import OpenScripted, get

ON_UVLOOP = True
KEY = "wk_0aB1cD2e_" + "x" * 38


@pytest.mark.parametrize(
    "query",
    ["api_key=x", "a=b&access_token=y", "API_KEY=", f"q={KEY}", f"a=1&b=before{KEY}", KEY, "%61pi_key=x", "x-api-key=1",
     f"q=%77k_{KEY[3:]}", "authorization=Bearer%20x"],
)  # fmt: skip
def test_key_is_found_by_its_name_or_its_form(query: str) -> None:
    """However it is written; the reason does not repeat it."""
    with pytest.raises(BadRequestError, match="do not belong into a URL") as refused:
        refuse_keys(query.encode())
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("query", ["limit=5", "after=wk_short", "runtime=default/api_key", "metadata.api_key=x", "&&="])
def test_other_queries_are_not_looked_at(query: str) -> None:
    """What only resembles a key, or is a value of that name."""
    refuse_keys(query.encode())


async def test_key_in_the_url_of_the_gateways_own_path_is_refused_and_logged_nowhere(
    open_gateway: OpenScripted, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside a good one in the header. An application's path has its query as it was sent."""
    gateway, sandbox = await open_gateway(auth=True, access_log=True)
    found = gateway.gateway.surfaces.keys.authenticator
    assert found is not None
    key, _ = await found.directory.create(role=Role.ADMIN)
    with caplog.at_level(logging.DEBUG):
        for header in ("", f"authorization: Bearer {key}\n"):
            answer = await gateway.ask(f"GET /v1/sessions?api_key={key} HTTP/1.1\nhost: h\n{header}")
            assert answer.status == 400
            assert "do not belong into a URL" in answer.body.decode()
            assert key not in answer.body.decode()
        session = await gateway.session()
        path = f"/app?api_key={KEY}"
        assert (await gateway.ask(get(session, path, f"authorization: Bearer {key}\n"))).status == 200
    assert sandbox.requests[-1].start.split(" ")[1] == path
    said = caplog.text + capsys.readouterr().err
    assert "path=/app" in said
    assert key not in said
    assert KEY not in said


async def test_gateway_without_authentication_takes_any_query(open_gateway: OpenScripted) -> None:
    """As it has no keys."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask("GET /openapi.json?api_key=x HTTP/1.1\nhost: h\n")
    assert answer.status == 200
