// What was forecast of one pool and what came, and below it the pool itself: the gateway's own record of the last hour
// or more, so that a page that has just been opened shows as much as one that was open all day.

import { get, path } from "./api.js";
import { h, replace } from "./dom.js";

const FIELDS = ["high", "low", "expected", "came"], POOL = ["target", "ready", "claims", "misses"];
const width = (where) => Math.min(1200, where.clientWidth || 800);
const SPAN = 600; // seconds of an axis at least: of a single point uPlot would make one of years

export async function forecasts(place, runtime, { signal }) {
  const [plural, namespace, name] = runtime.split("/"); // code-interpreters/default/NAME
  const kind = plural === "agent-runtimes" ? "AgentRuntime" : "CodeInterpreter";
  const said = h("p", { class: "dim", id: "forecast-said" }), above = h("div", { class: "chart" }), below = h("div", { class: "chart" });
  replace(place, h("h2", {}, "Forecast and what came"), said, above, h("h2", {}, "Pool, claims and misses"), below);
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--fg").trim();
  const clock = (_, ticks, __, ___, step) => ticks.map((each) => new Date(each * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}), hourCycle: "h23" }));
  const axis = { stroke: ink, grid: { stroke: style.getPropertyValue("--line").trim() } };
  const line = (label, stroke, more) => ({ label, stroke, width: 2, points: { size: 5 }, ...more });
  const make = (where, series, more) => new window.uPlot({ width: width(where), height: 200, axes: [{ ...axis, values: clock, space: 70 }, axis],
    scales: { x: { range: (_, first, last) => [Math.min(first, last - SPAN), last] }, y: { range: (_, least, most) => [0, Math.max(1, most)] } },
    series: [{}, ...series], ...more }, [[], [], [], [], []], where);
  const edge = (label) => line(label, "#79a8d8", { width: 1, points: { show: false } });
  const charts = [
    [FIELDS, make(above, [edge("high"), edge("low"), line("forecast", "#3b82d0"), line("came", "#d9453c", { width: 0, points: { show: true, size: 6, fill: "#d9453c" } })],
      { bands: [{ series: [1, 2], fill: "rgba(121,168,216,.25)" }] })],
    [POOL, make(below, [line("target", "#7d8590"), line("ready", "#2da44e"), line("claims", "#9a6ee8"), line("misses", "#d9453c")])]];
  // A frame later: to change a size while sizes are told is an error, which browsers report to the page.
  const resized = new ResizeObserver(() => requestAnimationFrame(() => {
    if (!signal.aborted) charts.forEach(([, chart]) => { if (chart.width !== width(above)) chart.setSize({ width: width(above), height: 200 }); });
  }));
  resized.observe(above);
  signal.addEventListener("abort", () => resized.disconnect());
  signal.addEventListener("abort", () => charts.forEach(([, chart]) => chart.destroy()));

  return async function look() {
    const found = await get(path`/v1/autoscaler/${name}/forecasts?namespace=${namespace}&kind=${kind}`, { signal });
    if (signal.aborted) return;
    const points = found.points, last = points.at(-1);
    said.textContent = last ? `Of ${points.length} forecasts ${Math.round(found.withinBand * points.length)} came true within their band, `
      + `in which nine of ten should; the last: ${last.expected.toFixed(2)} claims in ${last.horizon.toFixed(1)} s (${last.low} to ${last.high}), and ${last.came} came.`
      : "No forecast is over yet: one is kept each 15 s where claims come, each minute where none do.";
    for (const [fields, chart] of charts) chart.setData([points.map((each) => each.at), ...fields.map((field) => points.map((each) => each[field]))]);
  };
}
