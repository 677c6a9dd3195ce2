// A code cell: its variables stay in the session; text is text, pictures are pictures, everything else is shown as text.

import { events, request } from "./api.js";
import { h, replace } from "./dom.js";

const PICTURES = { "image/png": /^[A-Za-z0-9+/=\s]+$/, "image/jpeg": /^[A-Za-z0-9+/=\s]+$/ };
const MOST = 1 << 20;

export async function code(place, { id, signal }) {
  const source = h("textarea", { id: "source", spellcheck: "false", "aria-label": "Code" });
  const language = h("select", { "aria-label": "Language" }, ["python", "bash"].map((each) => h("option", { value: each }, each)));
  const run = h("button", { class: "main", id: "run" }, "Run"), output = h("div", { id: "output", "aria-live": "polite" });
  replace(place, source, h("div", { class: "bar" }, language, run, h("span", { class: "dim" }, "Ctrl-Enter runs it")), output);

  let text = null, printed = 0;
  const print = (said, kind) => {
    if (printed > MOST) return;
    printed += said.length;
    if (!text || text.className !== kind) output.append((text = h("pre", { class: kind, tabindex: "0" })));
    text.append(h("span", {}, printed > MOST ? said.slice(0, 1000) + "\n… the rest is left out" : said));
  };
  function result(data) {
    const kind = Object.keys(PICTURES).find((each) => typeof data[each] === "string" && PICTURES[each].test(data[each]));
    if (kind) { output.append(h("img", { class: "result", alt: "Result of the code", src: `data:${kind};base64,${data[kind].replace(/\s/g, "")}` })); text = null; }
    else if (data["text/plain"] !== undefined) { print(String(data["text/plain"]) + "\n", ""); }
  }
  async function start() {
    run.disabled = true;
    replace(output);
    [text, printed] = [null, 0];
    try {
      const body = JSON.stringify({ code: source.value, language: language.value, stream: true });
      const reply = await request("POST", "/api/run_code", { session: id, body, raw: true, signal });
      for await (const { name, data } of events(reply)) {
        if (name === "stdout" || name === "stderr") print(String(data.text), name === "stderr" ? "error" : "");
        else if (name === "result") result(data.data || {});
        else if (name === "error") print([].concat(data.traceback || []).join("\n") || `${data.name}: ${data.value}`, "error");
        else if (name === "exit" && data.notice) print(data.notice + "\n", "dim");
      }
    } catch (error) { if (!signal.aborted) print(error.message, "error"); }
    run.disabled = false;
  }
  run.addEventListener("click", start);
  source.addEventListener("keydown", (event) => { if (event.ctrlKey && event.key === "Enter") start(); });
}
