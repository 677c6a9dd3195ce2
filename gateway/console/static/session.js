// One session: its state and history, a terminal, files, a code cell, ports; sleep, wake, end.

import { get, path, post, request } from "./api.js";
import { ago, h, replace, say, shown, size, table, until, when } from "./dom.js";
import { code } from "./code.js";
import { files } from "./files.js";
import { ports } from "./ports.js";
import { processes } from "./processes.js";
import { terminal } from "./terminal.js";

const TABS = [["terminal", "Terminal", terminal], ["files", "Files", files], ["code", "Code", code],
  ["processes", "Processes", processes], ["ports", "Ports", ports], ["history", "History", history], ["egress", "Egress", egress], ["audit", "Audit", audit]];
const CONTENTS = ["terminal", "files", "code", "processes", "ports"];

export async function session(place, frame) {
  const { caller, signal, onEvent, argument: id } = frame;
  const facts = h("dl"), usesNow = h("p", { class: "dim", id: "uses" }), panel = h("div", { class: "panel", role: "tabpanel", tabindex: "0" });
  const uses = ["admin", "member"].includes(caller.role), manages = uses || caller.role === "operator";
  let document = await get(path`/v1/sessions/${id}`, { signal });
  const act = (label, kind, run) => h("button", { class: kind, onclick: async (event) => {
    event.target.disabled = true;
    try { await run(); await refresh(); } catch (error) { say(error.message); }
    event.target.disabled = false;
  } }, label);
  const sleep = act("Sleep", "", () => post(path`/v1/sessions/${id}/hibernate`));
  const wake = act("Wake", "main", () => post(path`/v1/sessions/${id}/wake`));
  const end = act("End", "danger", async () => {
    if (confirm("End this session? Its files are gone then.")) await request("DELETE", path`/v1/sessions/${id}`);
  });
  const offered = TABS.filter(([name]) => (uses || !CONTENTS.includes(name)) && (manages || name !== "audit"));
  const tabs = offered.map(([name, title, open]) => h("button", { role: "tab", id: "tab-" + name, "aria-selected": "false",
    onclick: () => select(name, open), onkeydown: (event) => {
      // As tabs are known to work: Tab goes into them and out, arrows go among them.
      const at = tabs.indexOf(event.target), to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = (to + tabs.length) % tabs.length;
      select(offered[next][0], offered[next][2], true);
      tabs[next].focus();
    } }, title));
  replace(place, h("h1", {}, "Session ", h("code", {}, id)), facts, usesNow, h("div", { class: "bar" }, manages ? [sleep, wake, end] : ""),
    h("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the session" }, tabs), panel);

  let opened = null;
  function select(name, open, byArrow = false) {
    opened?.abort();
    opened = new AbortController();
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each.id === "tab-" + name));
      each.tabIndex = each.id === "tab-" + name ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", "tab-" + name);
    const inner = h("div");
    replace(panel, inner);
    Promise.resolve(open(inner, { ...frame, id, signal: opened.signal, byArrow }))
      .catch((error) => { if (!opened.signal.aborted) replace(inner, h("p", { class: "error" }, error.message)); });
  }
  function draw() {
    const state = h("dd", { id: "state-now", class: document.state }, document.state);
    const line = (name, value) => (value ? [h("dt", {}, name), h("dd", {}, value)] : []);
    replace(facts, h("dt", {}, "State"), state, line("Why", document.reason),
      line("Runtime", `${document.runtime.namespace}/${document.runtime.name}`), line("Tenant", document.tenant),
      line("Made", ago(document.createdAt)), line("Last use", ago(document.lastActiveAt)),
      line("Ends", document.state !== "terminated" && until(document.expiresAt)), line("Start", document.start),
      line("Metadata", Object.entries(document.metadata).map(([key, value]) => `${key}=${value}`).join(", ")));
    sleep.hidden = document.state !== "active";
    wake.hidden = !["hibernated", "lost"].includes(document.state);
    end.hidden = document.state === "terminated";
  }
  async function refresh() { document = await get(path`/v1/sessions/${id}`, { signal }); draw(); }
  draw();
  // What its sandbox uses, each five seconds while the page is looked at; asking neither wakes it nor counts as use.
  async function measure() {
    const found = await get(path`/v1/sessions/${id}/metrics`, { signal }), used = found.sandbox || {};
    const of = (value, limit, say) => (value === null || value === undefined ? null : say(value) + (limit === null ? "" : " of " + say(limit)));
    const parts = [["CPU", of(used.cpuSeconds, null, (each) => each.toFixed(1) + " s")], ["cores", of(used.cores, used.cpuLimit, (each) => each.toFixed(2))],
      ["memory", of(used.memoryBytes, used.memoryLimit, size)], ["processes", of(used.processes, used.processesLimit, String)], ["disk", of(used.diskBytes, used.diskLimit, size)],
      ["requests", found.requests], ["starts", Object.entries(found.starts).filter(([, count]) => count).map(([kind, count]) => `${count} ${kind}`).join(", ")]];
    usesNow.textContent = parts.filter(([, value]) => value !== null && value !== "").map(([name, value]) => `${name} ${value}`).join("; ");
  }
  const timer = setInterval(() => { if (!window.document.hidden) measure().catch(() => {}); }, 5000);
  signal.addEventListener("abort", () => clearInterval(timer));
  measure().catch(() => {});
  // `reset` and `lost`: some events were missed, as while the gateway was started again.
  const stop = onEvent((event) => { if (event.data?.session === id || ["reset", "lost"].includes(event.name)) refresh().catch(() => {}); });
  signal.addEventListener("abort", () => { stop(); opened?.abort(); });
  const first = offered.find(([name]) => name === (document.state === "active" ? offered[0][0] : "history")) || offered[0];
  select(first[0], first[2]);
}

async function history(place, { id, signal, onEvent }) {
  async function look() {
    const found = await get(path`/v1/sessions/${id}/logs`, { signal });
    const rows = found.events.reverse().map((each) => h("tr", {}, h("td", {}, when(each.at)), h("td", {}, each.event),
      h("td", { class: "wrap" }, Object.entries(each.details).map(([key, value]) => `${key}: ${value}`).join(", "))));
    replace(place, rows.length ? table(["When", "What", "Details"], rows, "History") : h("p", {}, "Nothing since this gateway's start."));
  }
  signal.addEventListener("abort", onEvent((event) => { if (event.data?.session === id) look().catch(() => {}); }));
  await look();
}

async function egress(place, { id, signal }) {
  const found = await get(path`/v1/sessions/${id}/egress`, { signal });
  const rows = found.log.map((each) => h("tr", {}, h("td", {}, when(each.at)), h("td", {}, each.outcome),
    h("td", { class: "mono" }, `${each.host}:${each.port}`), h("td", {}, size(each.bytesSent + each.bytesReceived)), h("td", { class: "wrap" }, each.reason || each.rule)));
  replace(place, h("p", {}, `${size(found.bytesSent)} sent, ${size(found.bytesReceived)} received; ${found.connections.refused} connections refused.`),
    rows.length ? table(["When", "Outcome", "Where", "Bytes", "Why"], rows, "Egress") : h("p", { class: "dim" }, "It has reached nothing."));
}

// Who did what, as the audit trail has it. Not renewed with each event: every look reads files.
async function audit(place, { id, signal }) {
  const said = h("p", { class: "dim" }), list = h("div");
  replace(place, h("div", { class: "bar" }, h("button", { onclick: () => look() }, "Look again"), said), list);
  async function look() {
    let found;
    try { found = await get(path`/v1/sessions/${id}/audit?limit=200`, { signal }); }
    catch (error) { said.textContent = shown(error.message); return; }
    const who = (actor) => [actor.subject, actor.role, actor.keyId && "key " + actor.keyId, actor.address && "from " + actor.address].filter((each) => each).join(", ");
    const rows = found.events.map((each) => h("tr", {}, h("td", {}, when(each.at)), h("td", {}, each.action), h("td", { class: "wrap" }, who(each.actor)),
      h("td", {}, each.status || "", each.code ? " " + each.code : ""),
      h("td", { class: "wrap" }, Object.entries(each.detail).map(([key, value]) => `${key}: ${value}`).join(", "))));
    said.textContent = found.complete ? "" : "Older lines are in the files of the trail.";
    replace(list, rows.length ? table(["When", "Action", "Who", "Status", "Details"], rows, "Audit") : h("p", {}, "No lines about it."));
  }
  await look();
}
