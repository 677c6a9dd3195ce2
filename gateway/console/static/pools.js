// Warm pools: how many sandboxes wait, what the forecast says and what came, and why.

import { get } from "./api.js";
import { forecasts } from "./forecasts.js";
import { h, replace, say, table, when } from "./dom.js";
import { whatIf } from "./what-if.js";

const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 2 }));

export async function pools(place, { signal, onEvent }) {
  const list = h("div"), facts = h("div"), chart = h("div"), what = h("div");
  replace(place, h("h1", {}, "Pools"), list, facts, chart, what);
  let open = null, shown = null, draw = null; // the pool that is shown, what ends its parts, what renews its charts

  async function look() {
    const found = await get("/v1/autoscaler", { signal });
    replace(list, found.problem ? h("p", { class: "error" }, found.problem) : "", table(
      ["Runtime", "Mode", "Ready", "In use", "Expected claims", "Came lately", "Misses an hour", "Why"],
      found.pools.map((each) => h("tr", {}, h("td", {}, h("button", { class: "row", onclick: () => { open = each.runtime; look().catch((error) => say(error.message)); } }, each.runtime)),
        h("td", {}, each.mode), h("td", {}, each.pool ? `${each.pool.ready} of ${each.target}` + (each.pool.starting ? `, ${each.pool.starting} starting` : "") : `– of ${each.target}`),
        h("td", {}, number(each.pool?.claimed)),
        h("td", {}, number(each.demand?.expectedClaims)), h("td", {}, number(each.demand?.recentClaims)),
        h("td", {}, number(each.demand?.expectedMissesPerHour)), h("td", { class: "wrap" }, each.why))), "Pools"));
    open = open || found.pools[0]?.runtime;
    const pool = found.pools.find((each) => each.runtime === open);
    if (!pool) return;
    describe(pool);
    if (shown?.runtime !== open) await choose(open);
    await draw?.();
  }

  async function choose(runtime) {
    shown?.parts.abort();
    const parts = new AbortController();
    shown = { runtime, parts };
    draw = null;
    whatIf(what, runtime, { signal: parts.signal })
      .catch((error) => { if (!parts.signal.aborted) replace(what, h("p", { class: "dim" }, error.message)); });
    const renew = await forecasts(chart, runtime, { signal: parts.signal });
    // What of one pool is not to be had must not take the table of all with it.
    if (shown.parts === parts) draw = () => renew().catch((error) => { if (!parts.signal.aborted) replace(chart, h("p", { class: "dim" }, error.message)); });
  }

  function describe(pool) {
    const lines = [["Why", pool.why], ["Rule", `${pool.rule}, ${pool.stocking}`], ["From, to", `${pool.min}, ${pool.max}`],
      ["Forecast", `${number(pool.demand?.expectedClaims)} claims in the next ${number(pool.demand?.horizon)} s`],
      ["A start takes", `${number(pool.leadTime.planned)} s planned, half of them ${number(pool.leadTime.p50)} s`],
      ["Last error", pool.error || pool.pool?.lastError]].filter((each) => each[1]);
    const changes = (pool.changes || []).slice(0, 10); // the newest come first
    replace(facts, h("h2", {}, pool.runtime), h("dl", {}, lines.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      changes.length ? [h("h2", {}, "Changes"), table(["When", "From", "To", "Why"], changes.map((each) => h("tr", {},
        h("td", {}, when(new Date(each.at * 1000).toISOString())), h("td", {}, each.from), h("td", {}, each.to), h("td", { class: "wrap" }, each.why))), "Changes")] : []);
  }
  const stop = onEvent((event) => { if (event.name === "pool.resized") look().catch(() => {}); });
  const timer = setInterval(() => look().catch((error) => { if (!signal.aborted) say(error.message); }), 5000);
  signal.addEventListener("abort", () => { stop(); clearInterval(timer); shown?.parts.abort(); });
  await look();
}
