// Background processes of a session: what runs, its output, and its end.

import { events, get, path, post, request } from "./api.js";
import { age, field, h, replace, say, shown, table } from "./dom.js";

const MOST = 256 << 10; // characters of output that are shown

export async function processes(place, { id, signal }) {
  const list = h("div"), output = h("div");
  const command = h("input", { id: "command", placeholder: "python3 -m http.server 8000", size: 36 });
  const form = h("form", { class: "bar" }, field("Command", command), h("button", { class: "main", type: "submit" }, "Start"),
    h("button", { type: "button", onclick: () => look() }, "Look again"));
  replace(place, form, list, output);

  // All that picod keeps of the output, and what comes while it runs. Not gone on with after a break: the request would
  // wake a session that has been put to sleep, for a page that somebody has left open.
  let following = null;
  async function logs(each) {
    following?.abort();
    const mine = following = new AbortController();
    signal.addEventListener("abort", () => mine.abort());
    const text = document.createTextNode(""), view = h("pre", { tabindex: "0", id: "output" }, text), state = h("span", { class: "dim", id: "output-state" }, "following…");
    const stop = h("button", { onclick: () => mine.abort() }, "Stop following");
    const save = h("button", { onclick: () => {
      const url = URL.createObjectURL(new Blob([text.data], { type: "text/plain" }));
      h("a", { href: url, download: `${each.id}.txt` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } }, "Save");
    replace(output, h("h2", {}, "Output of ", h("code", {}, each.id)), h("div", { class: "bar" }, state, stop, save), view);
    let fresh = "", due = false;
    function draw() { // once a frame, however many pieces came: a program that prints for ever must not stall the page
      due = false;
      const bottom = view.scrollTop + view.clientHeight >= view.scrollHeight - 4;
      text.data = (text.data + fresh).slice(-MOST);
      fresh = "";
      if (bottom) view.scrollTop = view.scrollHeight;
    }
    const add = (piece) => {
      fresh = (fresh + shown(piece)).slice(-MOST);
      if (!due) { due = true; requestAnimationFrame(draw); }
    };
    let ended = "The stream broke off; press Output to go on.";
    try {
      const reply = await request("GET", path`/api/processes/${each.id}/logs?follow=true`, { session: id, signal: mine.signal, raw: true });
      for await (const event of events(reply)) {
        if (event.name === "gap") add(`[${event.data.dropped} bytes are not kept any more]\n`);
        else if (event.name === "exit") ended = event.data.signal ? `Ended by signal ${event.data.signal}.` : `Ended with exit code ${event.data.exit_code}.`;
        else if (typeof event.data.text === "string") add(event.data.text);
      }
    } catch (error) {
      ended = mine.signal.aborted ? "Not followed any more." : error.message;
    }
    state.textContent = shown(ended);
    stop.disabled = true;
    if (ended.startsWith("Ended") && !signal.aborted) await look().catch(() => {});
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
