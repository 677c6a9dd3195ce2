// Background processes of a session: what runs, its output, and its end.

import { get, path, post, request } from "./api.js";
import { age, h, replace, say, table } from "./dom.js";

const MOST = 256 << 10; // characters of output that are shown

export async function processes(place, { id, signal }) {
  const list = h("div"), output = h("div");
  const command = h("input", { id: "command", placeholder: "python3 -m http.server 8000", size: 48 });
  const form = h("form", { class: "bar" }, h("label", { for: "command" }, "Command"), command, h("button", { class: "main", type: "submit" }, "Start"),
    h("button", { type: "button", onclick: () => look() }, "Look again"));
  replace(place, form, list, output);

  async function logs(each) {
    const found = await get(path`/api/processes/${each.id}/logs`, { session: id, signal });
    const text = typeof found.output === "string" ? found.output : (found.stdout || "") + (found.stderr || "");
    replace(output, h("h2", {}, "Output of ", h("code", {}, each.id)), h("pre", { tabindex: "0" }, text.slice(-MOST) || "nothing yet"));
  }
  const act = (label, kind, run) => h("button", { class: kind, onclick: async () => {
    try { await run(); } catch (error) { say(error.message); }
  } }, label);
  async function look() {
    const found = (await get("/api/processes", { session: id, signal })).processes;
    replace(list, found.length ? table(["Process", "State", "Command", "Since", "Exit code", "Actions"], found.map((each) => h("tr", {},
      h("td", { class: "mono" }, each.id), h("td", {}, each.state), h("td", { class: "wrap mono" }, [].concat(each.command).join(" ").slice(0, 500)),
      h("td", {}, age(each.started_at || each.startedAt)), h("td", {}, each.exit_code ?? ""),
      h("td", {}, act("Output", "", () => logs(each)), " ", act("End", "danger", async () => {
        await request("DELETE", path`/api/processes/${each.id}`, { session: id });
        await look();
      })))), "Processes") : h("p", { class: "dim" }, "No background processes. What a terminal or a code cell runs is not listed here."));
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!command.value.trim()) return;
    try { await post("/api/processes", { command: ["bash", "-c", command.value] }, { session: id }); command.value = ""; await look(); }
    catch (error) { say(error.message); }
  });
  await look();
}
