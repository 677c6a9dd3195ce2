// What sleeps, what runs, what is warm, what it costs: at a glance.

import { get } from "./api.js";
import { ago, card, h, replace, table } from "./dom.js";

const SAMPLE = /^(wakegate_[a-z_]+)(?:\{([^}]*)\})? ([0-9.eE+-]+)$/;

function readMetrics(text) {
  const sums = {}, starts = {}, buckets = new Map();
  let failed = 0;
  for (const line of text.split("\n")) {
    const found = SAMPLE.exec(line);
    if (!found) continue;
    const [, name, labels = "", value] = found;
    sums[name] = (sums[name] || 0) + Number(value);
    const start = /start="([a-z-]+)"/.exec(labels)?.[1];
    if (name === "wakegate_claims_total" && start) starts[start] = (starts[start] || 0) + Number(value);
    if (name === "wakegate_requests_total" && /status="5[^"]*"/.test(labels)) failed += Number(value);
    const below = /le="([^"]+)"/.exec(labels)?.[1];
    if (name === "wakegate_request_duration_seconds_bucket" && below) buckets.set(below, (buckets.get(below) || 0) + Number(value));
  }
  return { sums, starts, buckets, failed };
}

function quantile(buckets, part) {
  const sorted = [...buckets].map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count]).sort((a, b) => a[0] - b[0]);
  const all = sorted.at(-1)?.[1] || 0;
  const found = sorted.find((each) => each[1] >= all * part);
  if (!all || !found) return "–";
  return found[0] === Infinity ? "more" : "≤ " + (found[0] < 1 ? found[0] * 1000 + " ms" : found[0] + " s");
}

export async function overview(place, { caller, signal, onEvent }) {
  const cards = h("div", { class: "cards" }), recent = h("tbody");
  replace(place, h("h1", {}, "Overview"), cards, h("h2", {}, "Lately"),
    table(["When", "What", "Session or pool", "Details"], [], "Lately"));
  place.querySelector("tbody").replaceWith(recent);
  const metrics = ["admin", "operator"].includes(caller.role);
  let before = null, states = null, recount = 0;

  async function look() {
    const [runtimes, usage, text] = await Promise.all([
      get("/v1/runtimes", { signal }), get("/v1/usage?group_by=tenant", { signal }),
      metrics ? get("/metrics", { raw: true, signal }).then((reply) => reply.text()) : ""]);
    if (performance.now() >= recount) {
      const counted = await countStates(signal);
      states = counted.counts;
      // Each page of a thousand costs the gateway 60 ms: with many sessions they are counted once a minute.
      recount = performance.now() + (counted.pages > 1 ? 60000 : 0);
    }
    const now = { at: performance.now(), ...readMetrics(text) };
    const used = usage.usage.reduce((all, row) => { for (const key in row) if (typeof row[key] === "number") all[key] = (all[key] || 0) + row[key]; return all; }, {});
    const pool = (key) => runtimes.runtimes.reduce((sum, each) => sum + each.pool[key], 0);
    const shown = [
      card("active sessions", states.active, "n-active"), card("sleeping sessions", states.hibernated, "n-hibernated"),
      card("warm sandboxes", `${pool("ready")} of ${pool("target")}`), card("sandboxes in use", pool("claimed")),
    ];
    if (metrics) {
      const count = "wakegate_request_duration_seconds_count";
      const rate = before ? (now.sums[count] - before.sums[count]) / ((now.at - before.at) / 1000) : null;
      shown.push(card("requests a second", rate === null ? "–" : rate.toFixed(1)),
        card("half of all requests", quantile(now.buckets, 0.5)), card("95 of 100 requests", quantile(now.buckets, 0.95)),
        card("answers with 5xx", `${now.failed} of ${now.sums.wakegate_requests_total || 0}`, "n-failed"),
        card("starts: warm, cold, wakes", ["warm", "cold", "wake"].map((kind) => (now.starts[kind] || 0) + (kind === "wake" ? now.starts["wake-cold"] || 0 : 0)).join(", ")),
        card("claims without a warm sandbox", now.sums.wakegate_pool_misses_total || 0));
    }
    shown.push(card("sandbox hours today", ((used.sandboxSeconds || 0) / 3600).toFixed(2)),
      card("hours asleep today", ((used.hibernatedSeconds || 0) / 3600).toFixed(2)));
    if (used.cost !== undefined) {
      shown.push(card("cost today, " + usage.currency, used.cost.toFixed(2)),
        card("saved by sleeping", (used.costWithoutHibernation - used.cost).toFixed(2)));
    }
    replace(cards, shown);
    before = now;
  }

  const line = (event) => h("tr", {}, h("td", {}, ago(event.at)), h("td", {}, event.event),
    h("td", { class: "mono" }, event.session ? h("a", { href: "#/session/" + encodeURIComponent(event.session) }, event.session) : event.runtime),
    h("td", { class: "wrap" }, event.details.reason || event.details.why || event.details.start || ""));
  const page = await get("/v1/events", { signal });
  replace(recent, page.events.slice(-20).reverse().map(line));
  if (!page.events.length) recent.append(h("tr", {}, h("td", { class: "empty", colspan: 4, id: "nothing-yet" }, "Nothing since this gateway's start. A session that is made, sleeps, wakes or ends is shown here.")));
  const stop = onEvent((event) => {
    if (!event.data?.event) return;
    document.getElementById("nothing-yet")?.closest("tr").remove();
    recent.prepend(line(event.data));
    while (recent.children.length > 20) recent.lastChild.remove();
  });
  signal.addEventListener("abort", stop);
  await look();
  const soon = setTimeout(() => look().catch(() => {}), 1000); // a rate needs two looks
  const timer = setInterval(() => look().catch(() => {}), 5000);
  signal.addEventListener("abort", () => { clearTimeout(soon); clearInterval(timer); });
}

// At most ten pages of a thousand: "10000+" says more than a minute of waiting.
async function countStates(signal) {
  const counts = { active: 0, hibernated: 0 };
  let after = "", pages = 0;
  do {
    const page = await get("/v1/sessions?limit=1000" + (after ? "&after=" + encodeURIComponent(after) : ""), { signal });
    for (const each of page.sessions) counts[each.state] = (counts[each.state] || 0) + 1;
    after = page.next; pages += 1;
  } while (after && pages < 10);
  if (after) for (const key in counts) counts[key] += "+";
  return { counts, pages };
}
