// Usage and cost, by tenant, runtime, session, day or hour; the same as a file for a spreadsheet.

import { get } from "./api.js";
import { field, h, replace, say, size, table } from "./dom.js";

const GROUPS = ["tenant", "runtime", "tenant,runtime", "session", "day", "hour"];
const SPANS = [["a day", 1], ["a week", 7], ["30 days", 30]];
const HOURS = (value) => (value / 3600).toLocaleString("en", { maximumFractionDigits: 3 });
const MONEY = (value) => value.toFixed(4);
const COLUMNS = [["requests", "Requests", (value) => value], ["sandboxSeconds", "Sandbox hours", HOURS], ["idleSeconds", "of them idle", HOURS],
  ["hibernatedSeconds", "Hours asleep", HOURS], ["warmPoolSeconds", "Hours in warm pools", HOURS], ["cpuSeconds", "CPU hours used", HOURS],
  ["gpuSeconds", "GPU hours", HOURS], ["egressBytes", "Egress", size], ["cost", "Cost", MONEY], ["costWithoutHibernation", "without sleeping", MONEY],
  ["warmPoolCost", "of it warm pools", MONEY]];
const MOST_ROWS = 500;

export async function usage(place, { signal }) {
  const group = h("select", { id: "group" }, GROUPS.map((each) => h("option", { value: each }, each)));
  const span = h("select", { id: "span" }, SPANS.map(([name, days]) => h("option", { value: days }, name)));
  const list = h("div");
  replace(place, h("h1", {}, "Usage"), h("div", { class: "bar" }, field("By", group), field("Of the last", span),
    h("button", { id: "csv", onclick: () => save().catch((error) => say(error.message)) }, "Save as CSV")), list);
  const address = (more) => "/v1/usage?" + new URLSearchParams({ group_by: group.value, from: Math.floor(Date.now() / 1000 - span.value * 86400), ...more });

  async function look() {
    const found = await get(address(), { signal });
    const by = group.value.split(","), columns = COLUMNS.filter(([key]) => found.usage.some((row) => row[key]));
    const rows = found.usage.slice(0, MOST_ROWS).map((row) => h("tr", {}, by.map((key) => h("td", { class: "mono" }, row[key] || "(warm pools)")),
      columns.map(([key, , show]) => h("td", {}, row[key] === undefined ? "" : show(row[key])))));
    // Whole hours, as the gateway adds them up.
    const moment = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }), during = `From ${moment(found.from)} to ${moment(found.to)}`;
    replace(list, found.currency ? h("p", { class: "dim" }, `${during}; costs in ${found.currency}.`)
      : h("p", { class: "dim" }, `${during}. With prices in the settings, costs are here too.`),
    rows.length ? table([...by.map((each) => each[0].toUpperCase() + each.slice(1)), ...columns.map(([, title]) => title)], rows, "Usage") : h("p", { class: "empty" }, "Nothing was used."),
    found.usage.length > MOST_ROWS ? h("p", {}, `${found.usage.length - MOST_ROWS} more rows are in the CSV.`) : "");
  }
  async function save() {
    const reply = await get(address({ format: "csv" }), { raw: true });
    const url = URL.createObjectURL(await reply.blob());
    h("a", { href: url, download: `usage-${group.value.replace(",", "-")}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
  for (const each of [group, span]) each.addEventListener("change", () => look().catch((error) => say(error.message)));
  await look();
}
