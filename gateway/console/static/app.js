// The frame: who is logged in, which page is shown, one stream of events for all of them.

import { Refused, follow, get, login, logout } from "./api.js";
import { h, renew, replace, say } from "./dom.js";
import { overview } from "./overview.js";
import { sessions } from "./sessions.js";
import { session } from "./session.js";
import { pools } from "./pools.js";
import { runtimes } from "./runtimes.js";
import { agents } from "./agents.js";
import { usage } from "./usage.js";
import { tenants } from "./tenants.js";
import { keys } from "./keys.js";
import { reference } from "./reference.js";

// Address, title, page, and the roles that it is for, if not all.
const PAGES = [["overview", "Overview", overview], ["sessions", "Sessions", sessions], ["pools", "Pools", pools, ["admin", "operator"]],
  ["runtimes", "Runtimes", runtimes], ["agents", "Agents", agents], ["usage", "Usage", usage], ["tenants", "Tenants", tenants], ["keys", "Keys", keys, ["admin"]],
  ["api", "API", reference]];
const main = document.getElementById("main");
const offline = h("p", { id: "offline", class: "error", role: "status", hidden: true }, "The gateway does not answer. Trying again…");
main.before(offline);
const listeners = new Set();
let caller = null;
let leave = () => {};
let stream = null;

export const context = {
  get caller() { return caller; },
  onEvent(listener) { listeners.add(listener); return () => listeners.delete(listener); },
};

async function start() {
  try {
    caller = await get("/v1/caller");
  } catch (error) {
    if (error instanceof Refused && error.status === 401) { askForKey(); return; }
    replace(main, h("p", { class: "error" }, error.message));
    return;
  }
  const anonymous = caller.subject === "anonymous";
  replace(document.getElementById("who"), h("span", { class: "dim" }, `${caller.role} of ${caller.tenant} `),
    anonymous ? "" : h("button", { onclick: async () => { await logout(); location.reload(); } }, "Log out"));
  stream?.abort();
  stream = new AbortController();
  follow("/v1/events", (event) => listeners.forEach((each) => each(event)), (answers) => { offline.hidden = answers; }, stream.signal);
  show();
}

function askForKey(why = "") {
  replace(document.getElementById("nav"));
  replace(document.getElementById("who"));
  const key = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
  const problem = h("p", { class: "error", role: "alert" }, why);
  const form = h("form", { class: "login" }, h("h1", {}, "Log in"),
    h("label", { for: "key" }, "API key"), key, h("button", { class: "main", type: "submit" }, "Log in"), problem,
    h("p", { class: "dim" }, "The key goes into a cookie that no page can read. `wakegate keys create` makes one."));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await login(key.value.trim()); key.value = ""; await start(); } catch (error) { problem.textContent = error.message; }
  });
  replace(main, form);
  key.focus();
}

// An address that somebody has cut or mistyped is a page that there is not, and no empty one.
const decoded = (part) => { try { return decodeURIComponent(part); } catch { return part; } };

async function show() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const page = PAGES.find((each) => each[0] === name) || (name === "session" ? null : PAGES[0]);
  replace(document.getElementById("nav"), PAGES.filter((each) => !each[3] || each[3].includes(caller.role)).map(([key, title]) =>
    h("a", { href: "#/" + key, "aria-current": (page ? page[0] : "sessions") === key ? "page" : null }, title)));
  leave();
  const ended = new AbortController();
  leave = () => ended.abort();
  document.title = (page ? page[1] : "Session " + (rest[0] || "").slice(0, 8)) + " - Wakegate";
  const place = h("div");
  replace(main, place);
  try {
    await (page ? page[2] : session)(place, { ...context, caller, signal: ended.signal, argument: rest[0] });
  } catch (error) {
    if (!ended.signal.aborted) replace(place, h("h1", {}, "That did not work"), h("p", { class: "error" }, error.message));
  }
}

// Before it is known who looks, `start` shows the page that the address names by then.
window.addEventListener("hashchange", () => { if (caller) { show(); main.focus(); } });
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof Refused) { event.preventDefault(); say(event.reason.message); }
});
window.addEventListener("wakegate-unknown", () => {
  if (!caller || caller.subject === "anonymous") return; // before the login a 401 is a wrong key's
  caller = null;
  stream.abort();
  leave();
  offline.hidden = true;
  askForKey("Your session has ended: the key was revoked or is too old. Log in again.");
});
setInterval(renew, 5000);
start();
