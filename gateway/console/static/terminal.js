// A terminal in the sandbox: xterm.js over the gateway's WebSocket. A keystroke wakes a session that sleeps.

import { Terminal } from "./vendor/xterm.mjs";
import { FitAddon } from "./vendor/addon-fit.mjs";
import { get, path, post } from "./api.js";
import { h, replace } from "./dom.js";

// xterm.js puts its colours and sizes into <style> elements, which the policy of this page (no inline style) forbids.
// Made while it opens, they become constructed style sheets, which it allows.
function withSheets(make) {
  const create = document.createElement;
  document.createElement = function (name, ...more) {
    if (String(name).toLowerCase() !== "style") return create.call(document, name, ...more);
    const made = create.call(document, "template"); // in its place: a <style> is refused even while it is empty
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const set = (text) => sheet.replaceSync(text);
    Object.defineProperty(made, "textContent", { set, get: () => "" });
    Object.defineProperty(made, "innerText", { set, get: () => "" });
    made.remove = () => { document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== sheet); };
    return made;
  };
  try { return make(); } finally { document.createElement = create; }
}

export async function terminal(place, { id, signal, caller, byArrow }) {
  const box = h("div", { class: "terminal" }), line = h("p", { class: "dim", id: "terminal-state" }, "connecting…");
  replace(place, box, line);
  const view = new Terminal({ cursorBlink: true, scrollback: 5000, screenReaderMode: false, allowProposedApi: false,
    linkHandler: { activate() {} }, theme: { background: "#000000" } });
  const fit = new FitAddon();
  view.loadAddon(fit);
  withSheets(() => view.open(box));
  const resized = new ResizeObserver(() => fit.fit());
  resized.observe(box);
  fit.fit();
  let socket = null, name = "", seen = 0, waiting = [];
  const encoder = new TextEncoder();

  async function connect() {
    line.textContent = "connecting…";
    const query = new URLSearchParams(name ? { id: name, offset: seen } : {});
    query.set("cols", view.cols); query.set("rows", view.rows);
    // A WebSocket has no Authorization: it takes a token for this terminal alone, valid for a minute.
    if (caller.subject !== "anonymous") {
      query.set("wakegate_token", (await post(path`/v1/sessions/${id}/tokens`, { ttl: "1m", paths: ["/api/terminal"] })).token);
    }
    const url = new URL(path`/v1/sessions/${id}/terminal`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = query;
    const mine = (socket = new WebSocket(url));
    mine.binaryType = "arraybuffer";
    mine.onmessage = ({ data }) => {
      if (typeof data !== "string") { seen += data.byteLength; view.write(new Uint8Array(data)); return; }
      const told = JSON.parse(data);
      if (told.type === "ready") {
        name = told.id; seen = told.offset;
        line.textContent = "connected";
        for (const each of waiting.splice(0)) mine.send(each);
      } else if (told.type === "exit") { line.textContent = `ended with status ${told.exit_code}; a key opens another`; name = ""; seen = 0; }
    };
    mine.onclose = (event) => {
      if (socket !== mine) return;
      socket = null;
      if (line.textContent === "connected" || line.textContent === "connecting…") {
        line.textContent = (event.reason || "disconnected") + "; a key connects again";
        if (event.code === 1001) { name = ""; seen = 0; } // the sandbox went with the sleep, and its terminals
      }
    };
  }
  view.onData((text) => {
    const data = encoder.encode(text);
    if (socket?.readyState === WebSocket.OPEN) { socket.send(data); return; }
    if (waiting.length < 64) waiting.push(data);
    if (!socket) connect().catch((error) => { line.textContent = error.message; });
  });
  view.onResize(({ cols, rows }) => {
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "resize", cols, rows }));
  });
  signal.addEventListener("abort", () => { const left = socket; socket = null; left?.close(); resized.disconnect(); view.dispose(); });
  const found = await get(path`/v1/sessions/${id}`, { signal });
  if (found.state === "active") await connect();
  else line.textContent = "the session sleeps; a key wakes it";
  if (!byArrow) view.focus(); // which keeps every key to itself: who goes through the tabs with arrows could not go on
}
