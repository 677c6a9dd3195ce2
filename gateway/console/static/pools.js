// Warm pools: how many sandboxes wait, what the forecast says and what came, and why.

import { get } from "./api.js";
import { h, replace, say, table } from "./dom.js";
import { whatIf } from "./what-if.js";

const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 2 }));

export async function pools(place, { signal, onEvent }) {
  const list = h("div"), chosen = h("div");
  replace(place, h("h1", {}, "Pools"), list, chosen);
  const seen = new Map(); // runtime -> [[time], [claims lately], [forecast], [target], [ready]] since the page was opened
  let open = null, chart = null;

  async function look() {
    const found = await get("/v1/autoscaler", { signal });
    replace(list, found.problem ? h("p", { class: "error" }, found.problem) : "", table(
      ["Runtime", "Mode", "Ready", "In use", "Expected claims", "Came lately", "Misses an hour", "Why"],
      found.pools.map((each) => h("tr", {}, h("td", {}, h("button", { onclick: () => { open = each.runtime; chart = null; replace(chosen); look(); } }, each.runtime)),
        h("td", {}, each.mode), h("td", {}, `${each.pool.ready} of ${each.target}` + (each.pool.starting ? `, ${each.pool.starting} starting` : "")), h("td", {}, each.pool.claimed),
        h("td", {}, number(each.demand?.expectedClaims)), h("td", {}, number(each.demand?.recentClaims)),
        h("td", {}, number(each.demand?.expectedMissesPerHour)), h("td", { class: "wrap" }, each.why))), "Pools"));
    for (const each of found.pools) {
      const series = seen.get(each.runtime) || [[], [], [], [], []];
      [Date.now() / 1000, each.demand?.recentClaims ?? null, each.demand?.expectedClaims ?? null, each.target, each.pool.ready]
        .forEach((value, index) => { series[index].push(value); if (series[index].length > 720) series[index].shift(); });
      seen.set(each.runtime, series);
    }
    open = open || found.pools[0]?.runtime;
    const pool = found.pools.find((each) => each.runtime === open);
    if (pool) draw(pool);
  }

  function draw(pool) {
    const data = seen.get(pool.runtime);
    if (chart) { chart.setData(data); return; }
    const place = h("div", { class: "chart" });
    const facts = [["Why", pool.why], ["Rule", `${pool.rule}, ${pool.stocking}`], ["From, to", `${pool.min}, ${pool.max}`],
      ["Forecast", `${number(pool.demand?.expectedClaims)} claims in the next ${number(pool.demand?.horizon)} s`],
      ["A start takes", `${number(pool.leadTime.planned)} s planned, half of them ${number(pool.leadTime.p50)} s`],
      ["Last error", pool.error || pool.pool.lastError]].filter((each) => each[1]);
    const changes = (pool.changes || []).slice(-10).reverse();
    const what = h("div");
    whatIf(what, pool.runtime, { signal }).catch((error) => { if (!signal.aborted) replace(what, h("p", { class: "dim" }, error.message)); });
    replace(chosen, h("h2", {}, pool.runtime), place, h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      changes.length ? [h("h2", {}, "Changes"), table(["From", "To", "Why"], changes.map((each) => h("tr", {},
        h("td", {}, each.from ?? each.before ?? ""), h("td", {}, each.to ?? each.target ?? ""), h("td", { class: "wrap" }, each.why))), "Changes")] : [], what);
    const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--fg").trim();
    const axis = { stroke: ink, grid: { stroke: style.getPropertyValue("--line").trim() } };
    const line = (label, stroke) => ({ label, stroke, width: 2 });
    chart = new window.uPlot({ width: Math.min(1200, place.clientWidth || 800), height: 220, axes: [axis, axis],
      // Five minutes at least: of a single point uPlot would make an axis of years.
      scales: { x: { range: (plot) => [Math.min(plot.data[0][0], plot.data[0].at(-1) - 300), plot.data[0].at(-1)] }, y: { range: (_, least, most) => [0, Math.max(1, most)] } },
      series: [{}, line("claims lately", "#b3261e"), line("forecast", "#0b5cad"), line("target", "#57606a"), line("ready", "#2da44e")] }, data, place);
  }
  const stop = onEvent((event) => { if (event.name === "pool.resized") look().catch(() => {}); });
  const timer = setInterval(() => look().catch((error) => { if (!signal.aborted) say(error.message); }), 5000);
  signal.addEventListener("abort", () => { stop(); clearInterval(timer); chart?.destroy(); });
  await look();
}
