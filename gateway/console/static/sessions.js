// The table of sessions: a page of a hundred at a time, so that ten thousand are no more work than fifty.

import { get, post } from "./api.js";
import { age, field, h, replace, say, table } from "./dom.js";

const PAGE = 100;
const MOST_ASKED = 50; // requests of one search for a page: each looks through 20,000 sessions at most
const STATES = ["", "active", "hibernated", "lost", "creating", "terminated", "all"];

export async function sessions(place, { caller, signal, onEvent }) {
  const rows = h("tbody"), cursors = [""];
  const state = h("select", { id: "state" }, STATES.map((each) => h("option", { value: each }, each || "not ended")));
  const runtime = h("input", { id: "runtime", placeholder: "namespace/name", size: 22 });
  const search = h("input", { id: "search", type: "search", placeholder: "words of id, metadata, …", maxlength: 200, size: 24 });
  const back = h("button", { disabled: true }, "Newer"), forth = h("button", { disabled: true }, "Older");
  const may = ["admin", "member"].includes(caller.role);
  const create = h("button", { class: "main", id: "create" }, "New session");
  const where = h("span", { class: "dim" });
  let shown = [], next = null, wanted = 0;

  replace(place, h("h1", {}, "Sessions"),
    h("div", { class: "bar" }, field("State", state), field("Runtime", runtime), field("Search", search), may ? create : ""),
    table(["Session", "State", "Runtime", "Age", "Last use", "Start", "Tenant", "Metadata"], [], "Sessions"),
    h("div", { class: "bar" }, back, forth, where));
  place.querySelector("tbody").replaceWith(rows);

  const row = (each) => h("tr", { id: "s-" + each.id },
    h("td", { class: "mono" }, h("a", { href: "#/session/" + encodeURIComponent(each.id) }, each.id)),
    h("td", { class: each.state }, each.state), h("td", {}, `${each.runtime.namespace}/${each.runtime.name}`),
    h("td", {}, age(each.createdAt)), h("td", {}, age(each.lastActiveAt)), h("td", {}, each.start || ""),
    h("td", {}, each.tenant || ""), h("td", {}, Object.entries(each.metadata).map(([key, value]) => `${key}=${value}`).join(" ").slice(0, 120)));

  function draw() {
    const asked = state.value || runtime.value.trim() || search.value.trim();
    replace(rows, shown.length ? shown.map(row) : h("tr", {}, h("td", { class: "empty", colspan: 8 }, next ? "None among those looked through yet."
      : asked ? "No session fits." : may ? "No sessions yet. “New session” makes one, and so does `wakegate create`." : "No sessions yet.")));
    where.textContent = shown.length ? `page ${cursors.length}, ${shown.length} session${shown.length > 1 ? "s" : ""}` : next ? "none found yet" : "no sessions";
    back.disabled = cursors.length < 2;
    forth.disabled = !next;
  }

  async function load() {
    const mine = (wanted += 1);
    const query = new URLSearchParams();
    if (state.value) query.set("state", state.value);
    if (runtime.value.trim()) query.set("runtime", runtime.value.trim());
    if (search.value.trim()) query.set("search", search.value.trim());
    let found = [], after = cursors.at(-1), asked = 0;
    do { // a page of a search may be short before the last one
      if (after) query.set("after", after);
      query.set("limit", PAGE - found.length);
      const page = await get("/v1/sessions?" + query, { signal });
      if (mine !== wanted) return; // a later one was asked for meanwhile
      found = found.concat(page.sessions);
      after = page.next;
      asked += 1;
    } while (after && found.length < PAGE && query.has("search") && asked < MOST_ASKED);
    [shown, next] = [found, after];
    draw();
  }
  const again = () => { cursors.splice(1); load().catch((error) => say(error.message)); };
  state.addEventListener("change", again);
  runtime.addEventListener("change", again);
  let typed = 0;
  search.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(again, 200); });
  back.addEventListener("click", () => { cursors.pop(); load().catch((error) => say(error.message)); });
  forth.addEventListener("click", () => { cursors.push(next); load().catch((error) => say(error.message)); });
  create.addEventListener("click", async () => {
    create.disabled = true;
    try { location.hash = "#/session/" + encodeURIComponent((await post("/v1/sessions", {})).id); }
    catch (error) { say(error.message); create.disabled = false; }
  });
  // One look for all events of a second.
  let timer = 0;
  const stop = onEvent((event) => {
    if (!event.data?.session && !["reset", "lost"].includes(event.name)) return;
    clearTimeout(timer);
    timer = setTimeout(() => load().catch(() => {}), 1000);
  });
  signal.addEventListener("abort", () => { stop(); clearTimeout(timer); clearTimeout(typed); });
  await load();
}
