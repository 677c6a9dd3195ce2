// Agents: which revision of each serves, the change under way and undoing it, what ran in the background.

import { get, path, post } from "./api.js";
import { age, ago, h, replace, say, table, when } from "./dom.js";

export async function agents(place, { caller, signal }) {
  const list = h("div"), facts = h("div"), may = ["admin", "member"].includes(caller.role);
  replace(place, h("h1", {}, "Agents"), list, facts);
  let open = "";
  const act = (label, kind, run) => h("button", { class: kind, onclick: async (event) => {
    event.target.disabled = true;
    try { await run(); await look(); } catch (error) { say(error.message); }
    event.target.disabled = false;
  } }, label);
  const of = (each) => "?" + new URLSearchParams({ namespace: each.namespace });

  function row(each) {
    const stopped = each.phase === "Stopped", own = may && each.managedBy === "api";
    return h("tr", {}, h("td", { class: "mono" }, h("button", { class: "row", onclick: () => { open = `${each.namespace}/${each.name}`; look().catch((error) => say(error.message)); } }, `${each.namespace}/${each.name}`)),
      h("td", { class: { Running: "active", Failed: "error" }[each.phase] || "" }, each.phase), h("td", {}, each.revision ?? "–"), h("td", {}, each.owner || ""),
      h("td", {}, ago(each.updatedAt)), h("td", {}, each.managedBy === "api" ? "the API" : "a manifest"),
      may ? h("td", {}, own ? act(stopped ? "Start" : "Stop", "", () => {
        if (stopped || confirm(`Stop ${each.name}? Its sessions end.`)) return post(path`/v1/agents/${each.name}/${stopped ? "start" : "stop"}` + of(each));
      }) : "") : "");
  }
  async function look() {
    const found = (await get("/v1/agents", { signal })).agents;
    replace(list, found.length ? table(["Agent", "State", "Revision", "Owner", "Changed", "Comes from", ...(may ? ["Actions"] : [])], found.map(row), "Agents")
      : h("p", { class: "empty" }, "No agents yet: ", h("code", {}, "wakegate deploy FOLDER"), " puts one here."));
    const chosen = found.find((each) => `${each.namespace}/${each.name}` === open) || found[0];
    if (chosen) await describe(chosen);
    else replace(facts);
  }
  async function describe(agent) {
    // A part that is not to be had (an agent of a manifest has no rollout, a viewer sees no tasks) is left out.
    const [rollout, revisions, tasks] = await Promise.all(["rollout", "revisions", "tasks"]
      .map((part) => get(path`/v1/agents/${agent.name}/${part}` + of(agent), { signal }).catch(() => null)));
    const change = rollout?.rollout, order = (action) => () => post(path`/v1/agents/${agent.name}/rollout` + of(agent), { action });
    const buttons = may && rollout && agent.managedBy === "api" ? [
      (revisions?.revisions.length || 0) > 1 && act("Undo", "", order("undo")),
      change?.phase === "canary" && act(change.paused ? "Resume" : "Pause", "", order(change.paused ? "resume" : "pause")),
      change?.phase === "canary" && act("Promote", "", order("promote"))].filter((each) => each) : [];
    const part = (title, titles, rows) => (rows?.length ? [h("h2", {}, title), table(titles, rows, title)] : []);
    replace(facts, h("h2", {}, `${agent.namespace}/${agent.name}`), h("dl", {}, h("dt", {}, "Address"), h("dd", {}, h("code", {}, location.origin + agent.path)),
      rollout ? [h("dt", {}, "Serves"), h("dd", {}, `revision ${rollout.stable}`), h("dt", {}, "Change"),
        h("dd", { id: "change" }, change ? `revision ${change.revision}: ${change.phase}${change.paused ? ", paused" : ""}` : "none under way")] : []),
    h("div", { class: "bar" }, buttons),
    part("What happened", ["When", "Revision", "What"], rollout?.events.slice(0, 10).map((each) => h("tr", {}, h("td", {}, when(each.at)), h("td", {}, each.revision), h("td", { class: "wrap" }, each.text)))),
    part("Revisions", ["Revision", "Age", "By", "Changed", "Reason"], revisions?.revisions.slice(0, 10).map((each) => h("tr", {}, h("td", {}, each.revision), h("td", {}, age(each.createdAt)),
      h("td", { class: "mono" }, each.createdBy), h("td", { class: "wrap" }, each.diff.map((one) => one.field).join(", ") || "–"), h("td", { class: "wrap" }, each.reason || "")))),
    part("Background tasks", ["Task", "State", "Age", "Tries", "Error"], tasks?.tasks.slice(0, 20).map((each) => h("tr", {}, h("td", { class: "mono" }, each.id), h("td", {}, each.state),
      h("td", {}, age(new Date(each.createdAt * 1000).toISOString())), h("td", {}, each.attempts), h("td", { class: "wrap" }, each.error || "")))));
  }
  const timer = setInterval(() => look().catch((error) => { if (!signal.aborted) say(error.message); }), 5000);
  signal.addEventListener("abort", () => clearInterval(timer));
  await look();
}
