"""The console in a real Chromium, against a real gateway with real sandboxes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.browser import axe, chromium, find_browser
from tests.support.redis_server import free_port
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "gateway" / "console" / "static"
MOST_BYTES = 100 << 10
LIMIT_MS = 40_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway without keys for the module."""
    find_browser()
    folder = tmp_path_factory.mktemp("console")
    with serve(folder / "state", "--warm-pool", "1", "--audit-log", str(folder / "audit.log")) as running:
        yield running


@contextmanager
def page_of(url: str, **options: Any) -> Iterator[Any]:
    """A page that must say nothing on its console: no error, no refusal of its policy."""
    said: list[str] = []
    with chromium(**options) as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        yield page
    # A request that is refused on purpose is reported by the browser itself.
    assert [each for each in said if "Failed to load resource" not in each] == []


def check_accessible(page: Any, what: str) -> None:
    """WCAG 2 AA, as far as axe can tell."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe())
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")["violations"]
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == [], what


def test_own_code_is_small_and_sets_no_markup() -> None:
    """100 KiB beside what is vendored; text is the only thing that is ever put into the page."""
    files = list(STATIC.iterdir())
    assert sum(each.stat().st_size for each in files) <= MOST_BYTES
    for each in files:
        code = re.sub(r"//[^\n]*", "", each.read_text())
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert word not in code, (each.name, word)
        if each.suffix in (".html", ".css"):
            assert not re.search(r"(src|href)=.https?:|url\(", code), each.name


def test_person_makes_uses_puts_to_sleep_and_wakes_a_session(server: Server, tmp_path: Path) -> None:
    """A terminal, an upload, a plot, a sleep, and a key that wakes; each page accessible, in the light and the dark."""
    with page_of(server.url, color_scheme="dark") as page:
        page.wait_for_selector("#n-failed:has-text('0 of')")
        check_accessible(page, "overview")
        page.click("nav >> text=Sessions")
        page.click("#create")
        page.wait_for_selector("#terminal-state:has-text('connected')")
        session = page.url.rpartition("/")[2]
        page.keyboard.type("echo $((40+2))-typed > typed\n")
        page.click("#tab-files")
        upload = tmp_path / "a b.txt"
        upload.write_text("uploaded text")
        page.set_input_files("#upload", str(upload))
        page.click("button:has-text('a b.txt')")
        page.wait_for_selector("pre:has-text('uploaded text')")
        check_accessible(page, "files")
        page.click("button:has-text('typed')")
        page.wait_for_selector("pre:has-text('42-typed')")
        page.click("#tab-code")
        page.fill("#source", "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nprint('<b>printed</b>')")
        page.click("#run")
        page.wait_for_selector("img.result")
        assert "<b>printed</b>" in page.inner_text("#output")
        check_accessible(page, "code")
        page.click("button:has-text('Sleep')")
        page.wait_for_selector("#state-now:has-text('hibernated')")
        assert server.state(session)["state"] == "hibernated"
        page.click("#tab-terminal")
        page.wait_for_selector("#terminal-state:has-text('sleeps')")
        page.keyboard.type("echo $((50+3))-woken > woken\n")
        page.wait_for_selector("#state-now:has-text('active')")
        page.wait_for_selector("#terminal-state:has-text('connected')")
        page.click("#tab-files")
        page.click("button:has-text('woken')")
        page.wait_for_selector("pre:has-text('53-woken')")
        page.click("#tab-history")
        page.wait_for_selector("td:has-text('session.hibernated')")
        page.wait_for_selector("#uses:has-text('processes')")
        page.click("#tab-audit")
        page.wait_for_selector("td:has-text('session.hibernate')")
        check_accessible(page, "audit")


def test_operator_sees_pools_with_forecast_and_reason(server: Server) -> None:
    """What was forecast beside what came, drawn from the gateway's record; a sentence; in the light, and accessible."""
    server.client.post("/v1/sessions", json={}).raise_for_status()
    path = "/v1/autoscaler/my-interpreter/forecasts"
    wait_until(lambda: server.client.get(path).json().get("points"), "a forecast is over")
    with page_of(server.url + "/#/pools", color_scheme="light") as page:
        page.wait_for_selector(".chart canvas")
        page.wait_for_selector("td:has-text('The pool')")
        page.wait_for_selector("#forecast-said:has-text('came true within their band')")
        check_accessible(page, "pools")
        page.goto(server.url + "/#/sessions")
        page.wait_for_selector("#create")
        check_accessible(page, "sessions")


_PAGES = ("overview", "sessions", "pools", "runtimes", "agents", "usage", "tenants", "keys", "api")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_fit_a_wide_and_a_narrow_screen(server: Server, scheme: str) -> None:
    """No page is wider than a telephone or than 1280 points; tables scroll by themselves."""
    with page_of(server.url, color_scheme=scheme) as page:
        for name in _PAGES:
            page.goto(f"{server.url}/#/{name}")
            page.wait_for_selector("main h1")
            wait_until(lambda: page.evaluate("document.querySelector('main').textContent.length > 40"), "it is filled")
            assert page.title().lower() == f"{name} - wakegate"
            for width in (390, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                # Waited for, as charts follow a moment later.
                # By `evaluate`: wait_for_function evaluates text in the page, which its policy forbids.
                wait_until(
                    lambda: page.evaluate("document.documentElement.scrollWidth <= innerWidth"),
                    f"{name} fits a screen of {width}",
                )
            check_accessible(page, f"{name}, {scheme}")


def test_tabs_of_a_session_are_moved_through_with_arrows(server: Server) -> None:
    """As tabs are known to work: Tab goes into them once, arrows go among them, and round."""
    session = server.session()
    server.client.post(f"/v1/sessions/{session}/hibernate").raise_for_status()
    with page_of(f"{server.url}/#/session/{session}") as page:
        page.focus("#tab-history")
        for key, tab in (
            ("ArrowRight", "egress"),
            ("ArrowRight", "audit"),
            ("ArrowRight", "terminal"),
            ("End", "audit"),
        ):
            page.keyboard.press(key)
            page.wait_for_selector(f"#tab-{tab}[aria-selected=true][tabindex='0']:focus")
        assert page.locator("[role=tab][tabindex='0']").count() == 1
        assert page.is_visible("button:has-text('Wake')")
        assert not page.is_visible("button:has-text('Sleep')")


def test_person_sees_what_serves_of_an_agent_and_stops_it(tmp_path: Path) -> None:
    """Its revisions and what happened; the page of pools goes on with a pool of a revision in it."""
    find_browser()
    (tmp_path / "greeter").mkdir()
    (tmp_path / "greeter" / "app.py").write_text(
        "class Flask:\n    def __init__(self, name): pass\n    def __call__(self, environ, start):\n"
        "        start('200 OK', [('content-type', 'text/plain')])\n        return [b'hello']\napp = Flask(__name__)\n"
    )
    with serve(tmp_path / "state", "--warm-pool", "0") as server, page_of(server.url + "/#/agents") as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.wait_for_selector("p:has-text('No agents yet')")
        subprocess.run(
            [sys.executable, "-m", "gateway", "deploy", str(tmp_path / "greeter"), "--url", server.url],
            check=True, capture_output=True, cwd=ROOT,
        )  # fmt: skip
        page.wait_for_selector("td.active:has-text('Running')")
        page.wait_for_selector("td:has-text('serves all new sessions')")
        check_accessible(page, "agents")
        page.click("nav >> text=Pools")
        page.wait_for_selector("button:has-text('greeter@1')")
        page.click("button:has-text('greeter@1')")
        page.wait_for_selector("#what-if-said dd")
        page.click("nav >> text=Agents")
        page.click("button:has-text('Stop')")
        page.wait_for_selector("td:has-text('Stopped')")


def test_operator_moves_the_target_and_sees_its_cost(server: Server) -> None:
    """The slider goes over the targets that the gateway has worked out; its history is a file for a replay."""
    with page_of(server.url + "/#/pools") as page:
        page.wait_for_selector("#what-if-said dd")
        page.focus("#what-if")
        page.keyboard.press("End")
        assert page.inner_text("#what-if-target") == "0.1 % of claims may miss"
        page.keyboard.press("Home")
        assert page.inner_text("#what-if-target") == "20 % of claims may miss"
        with page.expect_download() as download:
            page.click("button:has-text('Download the history')")
        assert download.value.suggested_filename.endswith(".ndjson")


def test_person_reads_runtimes_usage_tenants_and_runs_an_example(server: Server) -> None:
    """Each page by its link; a limit is set; usage is saved as a file; an operation of the reference is sent."""
    with page_of(server.url) as page:
        page.click("nav >> text=Runtimes")
        page.click("td >> text=default/my-interpreter")
        page.wait_for_selector("#manifest:has-text('built in')")
        check_accessible(page, "runtimes")
        page.click("nav >> text=Usage")
        page.wait_for_selector("p:has-text('From ')")
        check_accessible(page, "usage")
        with page.expect_download() as download:
            page.click("#csv")
        assert Path(download.value.path()).read_text().startswith("tenant,")
        page.click("nav >> text=Tenants")
        page.click("#new-tenant")
        page.fill("#tenant-name", "research")
        page.fill("#tenant-limits", '{"session": 3}')
        page.click("button:has-text('Save')")
        page.wait_for_selector("[role=alert]:has-text('session')")
        check_accessible(page, "tenants")
        page.fill("#tenant-limits", '{"sessions": 3}')
        page.click("button:has-text('Save')")
        page.wait_for_selector("td:has-text('sessions 0 of 3')")
        assert server.client.get("/v1/tenants/research").json()["limits"] == {"sessions": 3}
        page.click("nav >> text=API")
        page.fill("#search", "caller")
        page.click("summary:has-text('/v1/caller')")
        assert "curl -X GET" in page.inner_text("details[open] pre")
        page.click("details[open] button:has-text('Send')")
        page.wait_for_selector("details[open] pre:has-text('anonymous')")
        check_accessible(page, "reference")


def test_person_follows_a_background_process(server: Server) -> None:
    """Started, listed, its output followed to the end and saved, however much it is; ended."""
    session = server.client.post("/v1/sessions", json={}).json()["id"]
    server.run(session, "mkfifo fifo")
    with page_of(f"{server.url}/#/session/{session}") as page:
        page.wait_for_selector("#terminal-state:has-text('connected')")
        page.click("#tab-processes")
        page.fill("#command", "echo said-$((6*7)); read line < fifo; echo later-$line; exit 3")
        page.click("button:has-text('Start')")
        page.wait_for_selector("td:has-text('running')")
        check_accessible(page, "processes")
        page.click("button:has-text('Output')")
        page.wait_for_selector("pre:has-text('said-42')")
        assert page.inner_text("#output-state") == "following…"
        server.run(session, "echo word > fifo")
        page.wait_for_selector("pre:has-text('later-word')")
        page.wait_for_selector("#output-state:has-text('Ended with exit code 3.')")
        with page.expect_download() as download:
            page.click("button:has-text('Save')")
        assert Path(download.value.path()).read_text() == "said-42\nlater-word\n"
        page.fill("#command", "yes | head -c 3000000; echo last; sleep 1000")
        page.click("button:has-text('Start')")
        page.click("tr:has-text('running') >> button:has-text('Output')")
        page.wait_for_selector("pre:has-text('last')")
        assert page.evaluate("document.getElementById('output').textContent.length") <= 256 << 10
        page.click("tr:has-text('running') >> button:has-text('End')")
        page.wait_for_selector("td:has-text('running')", state="detached")


def test_nothing_that_a_sandbox_says_becomes_markup_or_script(server: Server) -> None:
    """Names of files, metadata, output and errors are text; a preview is a frame without this origin."""
    hostile = "<img src=x onerror=window.hit=1>"
    reply = server.client.post("/v1/sessions", json={"metadata": {"name": hostile}})
    session = reply.json()["id"]
    server.client.put(f"/api/files/{quote(hostile)}", headers={"x-session-id": session}).raise_for_status()
    server.run(session, "printf '<script>parent.hit=1; top.hit=1</script>hello' > index.html")
    server.client.post(
        "/api/processes", json={"command": ["python3", "-m", "http.server", "8000"]}, headers={"x-session-id": session}
    )
    server.client.get("/api/ports?wait=8000&timeout=30s", headers={"x-session-id": session})
    with chromium() as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.goto(server.url + "/#/sessions")
        page.wait_for_selector(f"#s-{session} >> text=onerror")
        page.fill("#search", "such-a-session-there-is-not")
        page.wait_for_selector("span:has-text('no sessions')")
        page.fill("#search", "name=<IMG onerror=window")
        page.wait_for_selector(f"#s-{session} >> text=onerror")
        page.goto(f"{server.url}/#/session/{session}")
        page.wait_for_selector("dd:has-text('onerror')")
        page.click("#tab-audit")
        page.wait_for_selector("td:has-text('file.write')")
        assert "onerror" in page.inner_text("[aria-label=Audit]")
        page.click("#tab-files")
        page.wait_for_selector("button:has-text('onerror')")
        page.click("#tab-code")
        page.fill(
            "#source", f"from IPython.display import HTML, display; display(HTML({hostile!r})); print({hostile!r}); 1/0"
        )
        page.click("#run")
        page.wait_for_selector("pre.error")
        page.click("#tab-processes")
        page.fill("#command", f"echo '{hostile}'")
        page.click("button:has-text('Start')")
        page.click("tr:has-text('onerror') >> button:has-text('Output')")
        page.wait_for_selector("#output:has-text('onerror')")
        page.click("#tab-ports")
        page.click("button:has-text('Preview 8000')")
        page.frame_locator("iframe").locator("text=hello").wait_for()
        assert page.get_attribute("iframe", "sandbox") == "allow-scripts allow-forms"
        assert page.evaluate("window.hit === undefined")


def manage_keys(page: Any) -> None:
    """Make a key, see it once, revoke it; back on the page of sessions afterwards."""
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("nav >> text=Keys")
    page.select_option("#key-role", "viewer")
    page.fill("#key-name", "of a test")
    page.click("#create-key")
    page.wait_for_selector("#made-key")
    assert page.input_value("#made-key").startswith("wk_")
    check_accessible(page, "keys")
    page.click("button:has-text('Done')")
    page.click("tr:has-text('of a test') >> button:has-text('Revoke')")
    page.wait_for_selector("tr:has-text('of a test')", state="detached")
    page.click("nav >> text=Sessions")
    page.wait_for_selector("#search")


MANIFEST = """
kind: CodeInterpreter
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
metadata: {name: shown}
spec:
  warmPoolSize: 0
  template:
    image: none
    environment: [{name: API_KEY, value: hunter2}, {name: LEVEL, value: debug}]
"""


def test_page_outlives_the_gateway_and_notices_the_end_of_its_key(tmp_path: Path) -> None:
    """A manifest without its key; an address that is no text; a restart, which is said; a key that is revoked."""
    find_browser()
    (tmp_path / "shown.yaml").write_text(MANIFEST)
    state, port = tmp_path / "state", free_port()
    flags = ("--warm-pool", "0", "--auth", "--runtime", str(tmp_path / "shown.yaml"))

    def keys(*words: str) -> str:
        command = [sys.executable, "-m", "gateway", "keys", *words, "--state-dir", str(state)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()

    key = keys("create", "--role", "admin")
    with chromium() as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        with serve(state, *flags, port=port) as server:
            page.goto(server.url + "/#/runtimes")
            page.fill("#key", key)
            page.click("button:has-text('Log in')")
            page.click("button:has-text('default/shown')")
            page.wait_for_selector("#manifest pre:has-text('LEVEL')")
            shown = page.inner_text("#manifest pre")
            assert ("hunter2" in shown, '"***"' in shown, '"debug"' in shown) == (False, True, True)
            check_accessible(page, "a manifest")
            page.goto(server.url + "/#/session/%E0%A4%A")
            page.wait_for_selector("h1:has-text('That did not work')")
            page.goto(server.url + "/#/sessions")
            page.wait_for_selector("td.empty")
            server.kill()
            page.wait_for_selector("#offline:has-text('does not answer')")
        with serve(state, *flags, port=port) as server:
            page.wait_for_selector("#offline", state="hidden")
            made = httpx.post(server.url + "/v1/sessions", json={}, headers={"x-api-key": key}).json()["id"]
            page.wait_for_selector(f"#s-{made}")
            keys("revoke", keys("ls", "-o", "name"))
            page.click("nav >> text=Overview")
            page.wait_for_selector("[role=alert]:has-text('Your session has ended')")
            assert page.locator("nav a").count() == 0


def test_folder_of_many_files_says_what_is_left_out(server: Server) -> None:
    """How many there are is said, a table of more than a thousand rows is searched, a name of 255 bytes is whole."""
    session = server.session()
    long = "n" * 255
    server.run(session, f"mkdir many; cd many; seq 2500 | xargs touch; touch 0{long[1:]}")
    with page_of(f"{server.url}/#/session/{session}") as page:
        page.wait_for_selector("#terminal-state:has-text('connected')")
        page.click("#tab-files")
        page.click("button:has-text('many/')")
        page.wait_for_selector("p:has-text('The first 2000 of 2501.')")
        page.wait_for_selector("span:has-text('the first 1000 of 2001')")
        assert page.locator("tbody tr").count() == 1000
        page.fill("[aria-label='Search Files']", "0NNN")
        page.wait_for_selector("span:has-text('1 of 2001')")
        check_accessible(page, "many files")
        page.wait_for_selector(f"button:has-text('0{long[1:]}')")


@pytest.mark.parametrize(("role", "sees"), [("admin", True), ("operator", True), ("member", False), ("viewer", False)])
def test_person_logs_in_with_a_key_of_each_role(tmp_path: Path, role: str, sees: bool) -> None:
    """The key is in no storage; a second tab knows nothing; out is out."""
    find_browser()
    with serve(tmp_path / "state", "--warm-pool", "0", "--auth") as server:
        made = subprocess.run(
            [sys.executable, "-m", "gateway", "keys", "create", "--role", role, "--state-dir", str(tmp_path / "state")],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        key = made.stdout.strip()
        with page_of(server.url.replace("127.0.0.1", "localhost")) as page:
            page.fill("#key", "wk_wrong")
            page.click("button:has-text('Log in')")
            page.wait_for_selector("[role=alert]:has-text('unknown')")
            check_accessible(page, "log in")
            page.fill("#key", key)
            page.click("button:has-text('Log in')")
            page.wait_for_selector(f"#who:has-text('{role} of default')")
            page.wait_for_selector("#n-active")
            assert (page.query_selector("nav >> text=Pools") is not None) == sees
            page.goto(page.url.partition("#")[0] + "#/sessions")
            page.wait_for_selector("#search")
            assert (page.query_selector("#create") is not None) == (role in ("admin", "member"))
            assert (page.query_selector("nav >> text=Keys") is not None) == (role == "admin")
            if role == "admin":
                manage_keys(page)
            stored = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])")
            assert key not in stored
            assert "wakegate_console" not in stored
            page.reload()
            page.wait_for_selector("#search")
            other = page.context.new_page()
            other.goto(page.url)
            other.wait_for_selector("#key")
            # The cookie alone, as a page of a sandbox on this origin would have it.
            assert other.evaluate("fetch('/v1/sessions').then((reply) => reply.status)") == 401
            page.click("button:has-text('Log out')")
            page.wait_for_selector("#key")
