// What another target would have cost one pool, from the shadow pools' own numbers: a slider over the targets that the
// gateway has worked out, so that what is shown is what its rules did with the claims they remember, not an estimate.

import { get, path, request } from "./api.js";
import { h, replace, say } from "./dom.js";

const number = (value) => Number(value).toLocaleString("en", { maximumFractionDigits: 2 });
const percent = (value) => (value === null ? "no claims yet" : number(value * 100) + " % of claims");

export async function whatIf(place, runtime, { signal }) {
  const [plural, namespace, name] = runtime.split("/"); // code-interpreters/default/NAME
  const kind = plural === "agent-runtimes" ? "AgentRuntime" : "CodeInterpreter";
  const found = await get(path`/v1/autoscaler/${name}/what-if?namespace=${namespace}&kind=${kind}`, { signal });
  const targets = found.targets; // from loose to tight
  // The target whose cost is nearest to that of the rule which is followed is where the slider starts.
  const gap = (each) => Math.abs(each.idleSandboxSecondsPerHour - found.followed.idleSandboxSecondsPerHour);
  const start = targets.reduce((best, each, i) => (gap(each) < gap(targets[best]) ? i : best), 0);
  const slider = h("input", { type: "range", id: "what-if", min: 0, max: targets.length - 1, step: 1, value: start, "aria-describedby": "what-if-said" });
  const said = h("dl", { id: "what-if-said", "aria-live": "polite" });
  const cost = (each) => (each.costPerHour === null ? "" : `, ${number(each.costPerHour)} ${found.currency} an hour`);
  const line = (title, each) => [h("dt", {}, title), h("dd", {}, `${number(each.idleSandboxSecondsPerHour)} idle sandbox-seconds and ${number(each.missesPerHour)} misses an hour (${percent(each.missRate)})${cost(each)}`)];

  function draw() {
    const each = targets[Number(slider.value)];
    slider.setAttribute("aria-valuetext", `${number(each.targetMissRate * 100)} % misses`);
    // The smallest fixed pool that would have missed no more: what a person would otherwise set by hand.
    const fixed = found.fixed.find((one) => one.missRate !== null && one.missRate <= (each.missRate ?? 0));
    replace(said, h("dt", {}, "Target"), h("dd", { id: "what-if-target" }, `${number(each.targetMissRate * 100)} % of claims may miss`), line("Would cost", each),
      line("Followed now", found.followed), fixed ? line(`Fixed at ${fixed.level}`, fixed) : []);
  }
  const bare = name.split("@")[0]; // of an agent: the history is of all its revisions
  async function history() {
    const reply = await request("GET", "/v1/autoscaler/history?" + new URLSearchParams({ runtime: `${namespace}/${bare}`, bucket: 1 }), { raw: true });
    const url = URL.createObjectURL(await reply.blob());
    h("a", { href: url, download: `${bare}.ndjson` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
  slider.addEventListener("input", draw);
  replace(place, h("h2", {}, "What if"), h("p", { class: "dim" }, `Of ${number(found.rememberedClaims)} claims in the last ${number(found.rememberedSeconds / 3600)} h; `
    + `since the first look forecasts have ${found.saved.savedSandboxSeconds < 0 ? "cost" : "saved"} ${number(Math.abs(found.saved.savedSandboxSeconds))} sandbox-seconds ${found.saved.savedSandboxSeconds < 0 ? "more than" : "beside"} the best fixed size.`),
  h("div", { class: "bar" }, h("label", { for: "what-if" }, "Target of misses"), "20 %", slider, "0.1 %"), said,
  h("div", { class: "bar" }, h("button", { onclick: () => history().catch((error) => say(error.message)) }, "Download the history"),
    h("span", { class: "dim" }, "replay it: "), h("code", {}, `wakegate replay ${bare}.ndjson`)));
  draw();
}
