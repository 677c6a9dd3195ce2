// The table of sessions: a page of a hundred at a time, so that ten thousand are no more work than fifty.

import { get, post } from "./api.js";
import { age, h, replace, say, table } from "./dom.js";

const PAGE = 100;
const STATES = ["", "active", "hibernated", "lost", "creating", "terminated", "all"];

export async function sessions(place, { caller, signal, onEvent }) {
  const rows = h("tbody"), cursors = [""];
  const state = h("select", { id: "state" }, STATES.map((each) => h("option", { value: each }, each || "not ended")));
  const runtime = h("input", { id: "runtime", placeholder: "namespace/name", size: 22 });
  const search = h("input", { id: "search", type: "search", placeholder: "id or metadata", size: 24 });
  const back = h("button", { disabled: true }, "Newer"), forth = h("button", { disabled: true }, "Older");
  const may = ["admin", "member"].includes(caller.role);
  const create = h("button", { class: "main", id: "create" }, "New session");
  const where = h("span", { class: "dim" });
  let shown = [], next = null, wanted = 0;

  replace(place, h("h1", {}, "Sessions"),
    h("div", { class: "bar" }, h("label", { for: "state" }, "State"), state, h("label", { for: "runtime" }, "Runtime"), runtime,
      h("label", { for: "search" }, "Search this page"), search, may ? create : ""),
    table(["Session", "State", "Runtime", "Age", "Last use", "Start", "Tenant", "Metadata"], [], "Sessions"),
    h("div", { class: "bar" }, back, forth, where));
  place.querySelector("tbody").replaceWith(rows);

  const row = (each) => h("tr", { id: "s-" + each.id },
    h("td", { class: "mono" }, h("a", { href: "#/session/" + encodeURIComponent(each.id) }, each.id)),
    h("td", { class: each.state }, each.state), h("td", {}, `${each.runtime.namespace}/${each.runtime.name}`),
    h("td", {}, age(each.createdAt)), h("td", {}, age(each.lastActiveAt)), h("td", {}, each.start || ""),
    h("td", {}, each.tenant || ""), h("td", {}, Object.entries(each.metadata).map(([key, value]) => `${key}=${value}`).join(" ").slice(0, 120)));

  function draw() {
    const text = search.value.trim().toLowerCase();
    const left = shown.filter((each) => !text || (each.id + JSON.stringify(each.metadata)).toLowerCase().includes(text));
    replace(rows, left.map(row));
    where.textContent = left.length ? `page ${cursors.length}, ${left.length} sessions` : "no sessions";
    back.disabled = cursors.length < 2;
    forth.disabled = !next;
  }

  async function load() {
    const mine = (wanted += 1);
    const query = new URLSearchParams({ limit: PAGE });
    if (state.value) query.set("state", state.value);
    if (runtime.value.trim()) query.set("runtime", runtime.value.trim());
    if (cursors.at(-1)) query.set("after", cursors.at(-1));
    const page = await get("/v1/sessions?" + query, { signal });
    if (mine !== wanted) return; // a later one was asked for meanwhile
    [shown, next] = [page.sessions, page.next];
    draw();
  }
  const again = () => { cursors.splice(1); load().catch((error) => say(error.message)); };
  state.addEventListener("change", again);
  runtime.addEventListener("change", again);
  search.addEventListener("input", draw);
  back.addEventListener("click", () => { cursors.pop(); load(); });
  forth.addEventListener("click", () => { cursors.push(next); load(); });
  create.addEventListener("click", async () => {
    create.disabled = true;
    try { location.hash = "#/session/" + encodeURIComponent((await post("/v1/sessions", {})).id); }
    catch (error) { say(error.message); create.disabled = false; }
  });
  // One look for all events of a second.
  let timer = 0;
  const stop = onEvent((event) => {
    if (!event.data?.session) return;
    clearTimeout(timer);
    timer = setTimeout(() => load().catch(() => {}), 1000);
  });
  signal.addEventListener("abort", () => { stop(); clearTimeout(timer); });
  await load();
}
