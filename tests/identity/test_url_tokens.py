"""Session tokens as a browser has them: in a link, then in a cookie."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import SessionId
from tests.support.scripted import Message, OpenScripted, ScriptedSandbox, Served

ON_UVLOOP = True
NAVIGATE = "sec-fetch-mode: navigate\nsec-fetch-site: none\naccept: text/html\n"


async def opened(open_gateway: OpenScripted, **scope: object) -> tuple[Served, ScriptedSandbox, SessionId, str]:
    """A gateway, its sandbox, a session, and a token for it."""
    gateway, sandbox = await open_gateway(auth=True)
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session()
    record = await gateway.gateway.store.get(session)
    authenticator = gateway.gateway.surfaces.keys.authenticator
    assert record is not None
    assert authenticator is not None
    ports = scope.get("ports", ())
    paths = scope.get("paths", ())
    token, _ = authenticator.issue_session_token(record, 60.0, subject="t", paths=paths, ports=ports)  # type: ignore[arg-type]
    return gateway, sandbox, session, token


async def get(gateway: Served, target: str, fields: str = "") -> Message:
    return await gateway.ask(f"GET {target} HTTP/1.1\nhost: h\n{fields}")


async def test_first_page_moves_the_token_from_the_url_into_a_cookie(open_gateway: OpenScripted) -> None:
    """A redirect to the same page without it; the cookie opens what follows, and the sandbox sees neither."""
    gateway, sandbox, session, token = await opened(open_gateway, ports=(8000,))
    page = f"/v1/sessions/{session}/ports/8000/app"
    answer = await get(gateway, f"{page}?a=1&wakegate_token={token}&b=2", NAVIGATE)
    assert (answer.status, answer.get("location")) == (303, f"{page}?a=1&b=2")
    cookie = answer.get("set-cookie") or ""
    assert cookie == f"wakegate_session={token}; Path=/v1/sessions/{session}/; HttpOnly; SameSite=Lax"
    assert sandbox.requests == []
    sent = f"cookie: mine=1; {cookie.partition(';')[0]}\n"
    assert (await get(gateway, f"{page}?a=1&b=2", NAVIGATE + sent)).status == 200
    assert (await get(gateway, page, sent)).status == 200
    for request in sandbox.requests:
        assert token not in request.start + str(request.fields)
        assert request.get("cookie") == "mine=1"
    assert (await get(gateway, page)).status == 401
    assert (await get(gateway, f"/v1/sessions/{session}/ports/8001/", sent)).status == 403


FOLLOWED = "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document\n"


async def test_link_on_another_site_opens_a_page_of_a_port(open_gateway: OpenScripted) -> None:
    """The redirect and what the cookie opens next: a browser says of both that another site sent it."""
    gateway, sandbox, session, token = await opened(open_gateway)
    page = f"/v1/sessions/{session}/ports/8000/app"
    answer = await get(gateway, f"{page}?wakegate_token={token}", FOLLOWED)
    assert answer.status == 303
    cookie = f"cookie: {(answer.get('set-cookie') or '').partition(';')[0]}\n"
    assert (await get(gateway, page, FOLLOWED + cookie)).status == 200
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("ports/8000/", FOLLOWED.replace("document", "iframe")),
        ("ports/8000/", FOLLOWED.replace("navigate", "no-cors")),
        ("ports/8000/", "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\n"),
        ("ports/8000/", FOLLOWED + "origin: https://evil.example\n"), ("", FOLLOWED), ("terminal", FOLLOWED),
    ],
)  # fmt: skip
async def test_nothing_but_a_followed_link_to_a_port_comes_from_other_sites(
    open_gateway: OpenScripted, path: str, fields: str
) -> None:
    """No frame, image, script or form of theirs, and no other path of the session, even with its token."""
    gateway, sandbox, session, token = await opened(open_gateway)
    for query, cookie in ((f"?wakegate_token={token}", ""), ("", f"cookie: wakegate_session={token}\n")):
        answer = await get(gateway, f"/v1/sessions/{session}/{path}{query}", fields + cookie)
        assert (answer.status, answer.json["code"]) == (403, "ORIGIN_NOT_ALLOWED")
    post = f"POST /v1/sessions/{session}/ports/8000/ HTTP/1.1\nhost: h\ncookie: wakegate_session={token}\n{FOLLOWED}"
    assert (await gateway.ask(f"{post}content-length: 0\n")).status == 403
    assert sandbox.requests == []


@pytest.mark.parametrize("auth", [True, False])
async def test_followed_link_without_a_token_is_refused(open_gateway: OpenScripted, auth: bool) -> None:
    """Where nobody is asked who they are, too: a page must not choose what a person's own gateway is asked for.

    Where credentials are asked for, the link may be to a port that is public, so it is refused for having none.
    """
    gateway, sandbox = await open_gateway(auth=auth)
    answer = await get(gateway, "/v1/sessions/s/ports/8000/", FOLLOWED)
    assert (answer.status, answer.json["code"]) == ((401, "UNAUTHORIZED") if auth else (403, "ORIGIN_NOT_ALLOWED"))
    assert sandbox.requests == []


async def test_part_of_a_page_is_served_at_once(open_gateway: OpenScripted) -> None:
    """Images, downloads and programs follow no redirect for a cookie; the token is gone from what the sandbox sees."""
    gateway, sandbox, session, token = await opened(open_gateway)
    target = f"/v1/sessions/{session}/ports/8000/x.png?wakegate_token={token}"
    assert (await get(gateway, target, "sec-fetch-mode: no-cors\nsec-fetch-site: same-origin\n")).status == 200
    assert (await get(gateway, target)).status == 200
    assert [urlsplit(request.path).query for request in sandbox.requests] == ["", ""]


async def test_redirect_stays_on_the_host(open_gateway: OpenScripted) -> None:
    """A path of two slashes would name another one."""
    gateway, _, session, token = await opened(open_gateway)
    for path in (f"/v1/sessions/{session}/ports/8000//evil.example/", f"/v1/sessions/{session}/ports/8000/%2f%2fevil/"):
        answer = await get(gateway, f"{path}?wakegate_token={token}", NAVIGATE)
        assert answer.get("location") == path
        assert not path.startswith("//")


async def test_only_one_session_token_is_taken_from_a_url(open_gateway: OpenScripted) -> None:
    """An API key there is refused with the reason; a broken token with 401."""
    gateway, sandbox, session, token = await opened(open_gateway)
    page = f"/v1/sessions/{session}/ports/8000/"
    authenticator = gateway.gateway.surfaces.keys.authenticator
    assert authenticator is not None
    key, _ = await authenticator.directory.create(role=Role.MEMBER, tenant="acme")
    for query in (f"wakegate_token={key}", f"wakegate_token={token}&wakegate_token={token}", "wakegate_token="):
        answer = await get(gateway, f"{page}?{query}", NAVIGATE)
        assert (answer.status, "URL" in answer.json["error"]) == (400, True)
    assert (await get(gateway, f"{page}?wakegate_token={token}x", NAVIGATE)).status == 401
    assert sandbox.requests == []


@pytest.mark.parametrize(("path", "status"), [("/v1/containers/ID/files/f/content", 404), ("/v1/tool_calls", 403)])
async def test_token_limited_to_paths_is_limited_on_every_surface(
    open_gateway: OpenScripted, path: str, status: int
) -> None:
    """One for a file must not run commands by way of a tool. (404: the scripted sandbox has no such file.)"""
    gateway, _, session, token = await opened(open_gateway, paths=("/v1/containers",))
    path = path.replace("ID", session)
    method = "POST" if path.endswith("calls") else "GET"
    body = b'{"tool_calls": []}' if method == "POST" else b""
    answer = await gateway.ask(
        f"{method} {path} HTTP/1.1\nhost: h\nx-session-id: {session}\nauthorization: Bearer {token}\n"
        f"content-length: {len(body)}\n", body,
    )  # fmt: skip
    assert answer.status == status, answer.body
