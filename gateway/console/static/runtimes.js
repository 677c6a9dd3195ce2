// Runtimes: what a session can be made of, the state of each one's warm pool, and what went wrong with it.

import { get, post } from "./api.js";
import { duration, h, replace, say, shown, table } from "./dom.js";

export async function runtimes(place, { caller, signal, onEvent }) {
  const list = h("div"), chosen = h("div", { id: "manifest", "aria-live": "polite" }), sees = ["admin", "operator"].includes(caller.role), may = ["admin", "member"].includes(caller.role);
  replace(place, h("h1", {}, "Runtimes"), list, chosen);
  const start = (name) => h("button", { onclick: async (event) => {
    event.target.disabled = true;
    try { location.hash = "#/session/" + encodeURIComponent((await post("/v1/sessions", { runtime: name })).id); }
    catch (error) { say(error.message); event.target.disabled = false; }
  } }, "New session");

  // As the gateway has read it; it masks what looks like a credential.
  async function show(name, kind) {
    try {
      const found = (await get("/v1/runtimes?" + new URLSearchParams({ runtime: name, manifest: "true" }), { signal })).runtimes.find((each) => each.kind === kind);
      replace(chosen, h("h2", {}, "Manifest of " + shown(name)), found?.manifest ? h("pre", { tabindex: "0", "aria-label": "Manifest" }, JSON.stringify(found.manifest, null, 2))
        : h("p", {}, found ? "It has none: it is built in." : "It is gone."));
      chosen.scrollIntoView({ block: "nearest" });
    } catch (error) { if (!signal.aborted) say(error.message); }
  }
  function row(each) {
    const pool = each.pool, name = `${each.namespace}/${each.name}`;
    // Conditions, as Kubernetes calls them: what an operator has to look at comes first.
    const conditions = [pool.lastError && h("span", { class: "error" }, pool.lastError + (pool.retryAt ? `; tried again in ${until(pool.retryAt)}` : "")),
      pool.losses ? `${pool.losses} sandboxes were lost, the last: ${pool.lastLoss || "unknown"}` : "",
      !pool.lastError && pool.ready >= pool.target ? "ready" : !pool.lastError ? "filling" : ""].filter((one) => one);
    return h("tr", {}, h("td", { class: "mono" }, sees ? h("button", { class: "row", title: "Show its manifest", onclick: () => show(name, each.kind) }, name) : name), may ? h("td", {}, start(name)) : "", h("td", {}, each.kind), h("td", { class: "mono" }, each.image || "this machine's Python"),
      h("td", {}, duration(each.sessionTimeout)), h("td", {}, duration(each.maxSessionDuration)),
      h("td", {}, `${pool.ready} of ${pool.target}, ${pool.mode}`), h("td", {}, pool.claimed),
      h("td", {}, pool.leadTimeP50 === null ? "–" : pool.leadTimeP50.toFixed(2) + " s"),
      h("td", { class: "wrap" }, conditions.map((one, i) => [i ? h("br") : "", one])));
  }
  async function look() {
    const found = (await get("/v1/runtimes", { signal })).runtimes;
    replace(list, found.length ? table(["Runtime", ...(may ? ["Use"] : []), "Kind", "Image", "Sleeps after", "Ends after", "Warm", "In use",
      "Start p50", "Condition"], found.map(row), "Runtimes") : h("p", { class: "empty" }, "None yet: `wakegate serve --runtime FILE` reads a manifest of them."));
  }
  const stop = onEvent((event) => { if (event.name === "pool.resized") look().catch(() => {}); });
  const timer = setInterval(() => look().catch((error) => { if (!signal.aborted) say(error.message); }), 5000);
  signal.addEventListener("abort", () => { stop(); clearInterval(timer); });
  await look();
}

// RFC 3339 -> how long until then.
const until = (moment) => Math.max(0, Math.round((Date.parse(moment) - Date.now()) / 1000)) + " s";
