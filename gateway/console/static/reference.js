// The API, rendered from /openapi.json: each operation with an example that runs here, or as a line of curl.

import { get, request } from "./api.js";
import { h, replace, shown } from "./dom.js";

const MOST = 64 << 10; // characters of an answer that are shown
const DEEPEST = 5;

export async function reference(place, { caller, signal }) {
  const description = await get("/openapi.json", { signal });
  const schemas = description.components.schemas;
  const search = h("input", { id: "search", type: "search", placeholder: "path or words", size: 28 }), list = h("div");
  replace(place, h("h1", {}, `API ${description.info.version}`),
    h("p", {}, "Programs send an API key as ", h("code", {}, "Authorization: Bearer wk_..."), " or ", h("code", {}, "X-API-Key"), ". Errors are ", h("code", {}, '{"error": text, "code": CODE}'),
      ". The document itself: ", h("a", { href: "/openapi.json", target: "_blank", rel: "noopener" }, "/openapi.json"), "."),
    h("div", { class: "bar" }, h("label", { for: "search" }, "Search"), search), list);
  const byTag = new Map();
  for (const [address, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] || "other";
      if (!byTag.has(tag)) byTag.set(tag, []);
      byTag.get(tag).push({ method: method.toUpperCase(), address, operation });
    }
  }
  const sections = [...byTag].map(([tag, all]) => ({ head: h("h2", {}, tag), all: all.map((each) => ({ ...each, shown: entry(each, schemas, caller.subject !== "anonymous") })) }));
  function draw() {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    const fits = (each) => words.every((word) => `${each.method} ${each.address} ${each.operation.summary}`.toLowerCase().includes(word));
    replace(list, sections.flatMap(({ head, all }) => {
      const left = all.filter(fits);
      return left.length ? [head, left.map((each) => each.shown)] : [];
    }));
  }
  search.addEventListener("input", draw);
  draw();
}

function entry({ method, address, operation }, schemas, withKey) {
  const details = h("details", { class: "operation" }, h("summary", {}, h("b", { class: "mono" }, method), " ", h("code", {}, address), " ", h("span", { class: "dim" }, operation.summary)));
  // Made when it is opened: a hundred forms at once are slow, and nobody fills them in.
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(form({ method, address, operation }, schemas, withKey)); });
  return details;
}

function form({ method, address, operation }, schemas, withKey) {
  const inputs = (operation.parameters || []).map((each) => {
    const choices = each.schema?.enum;
    const input = choices ? h("select", {}, ["", ...choices].map((value) => h("option", { value }, value))) : h("input", { size: 28 });
    input.setAttribute("aria-label", `${each.in} ${each.name}`);
    return { ...each, input };
  });
  const [kind, content] = Object.entries(operation.requestBody?.content || {})[0] || [];
  const body = kind ? h("textarea", { spellcheck: "false", "aria-label": "Body" }) : null;
  if (body) body.value = kind === "application/json" ? JSON.stringify(example(content.schema, schemas), null, 2) : "";
  const answer = h("div", { "aria-live": "polite" }), command = h("pre", { tabindex: "0" });

  function made() {
    let path = address, query = new URLSearchParams();
    const headers = {};
    for (const each of inputs) {
      const value = each.input.value.trim();
      if (each.in === "path") path = path.replace(`{${each.name}}`, value ? encodeURIComponent(value) : `{${each.name}}`);
      else if (value && each.in === "query") query.append(each.name, value);
      else if (value) headers[each.name] = value;
    }
    if (body) headers["content-type"] = kind;
    return { url: path + (query.size ? "?" + query : ""), headers, body: body ? body.value : undefined };
  }
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  function draw() {
    const { url, headers, body: text } = made();
    command.textContent = shown([`curl -X ${method} ${quoted(location.origin + url)}`, ...(withKey ? [`-H "Authorization: Bearer $WAKEGATE_API_KEY"`] : []),
      ...Object.entries(headers).map(([name, value]) => "-H " + quoted(`${name}: ${value}`)), ...(text ? ["--data-binary " + quoted(text)] : [])].join(" \\\n  "));
  }
  async function send() {
    const { url, headers, body: text } = made();
    replace(answer, h("p", { class: "dim" }, "…"));
    try {
      const reply = await request(method, url, { headers, body: text || undefined, raw: true, signal: AbortSignal.timeout(60_000) });
      replace(answer, h("p", {}, `${reply.status} ${reply.headers.get("content-type") || ""}`), h("pre", { tabindex: "0" }, pretty(await beginning(reply))));
    } catch (error) { replace(answer, h("p", { class: "error" }, `${error.status || ""} ${error.message}`)); }
  }
  const row = (each) => [h("dt", {}, h("code", {}, each.name), each.required ? " (needed)" : "", " ", h("span", { class: "dim" }, each.in)), h("dd", {}, each.input, " ", h("span", { class: "dim" }, each.description || ""))];
  const statuses = Object.entries(operation.responses).map(([status, each]) => [h("dt", {}, status), h("dd", {}, each.description)]);
  const filled = h("form", { class: "panel" }, h("dl", {}, inputs.map(row)), body || "",
    h("div", { class: "bar" }, h("button", { class: "main", type: "submit" }, "Send"), h("span", { class: "dim" }, "as you, to this gateway")), answer,
    h("h3", {}, "From a shell"), command, h("h3", {}, "Answers"), h("dl", {}, statuses));
  filled.addEventListener("input", draw);
  filled.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  draw();
  return filled;
}

// The first part of an answer: a stream that does not end, or a large file, is not read on.
async function beginning(reply) {
  if (!reply.body) return "";
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (text.length < MOST) {
    const { value, done } = await reader.read();
    if (done) return text;
    text += value;
    if (reply.headers.get("content-type")?.includes("event-stream") && text.includes("\n\n")) break;
  }
  reader.cancel().catch(() => {});
  return text.slice(0, MOST) + "\n… the rest is not read";
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

// A value that fits a schema: its example, its default, or the simplest there is; of objects what must be there.
function example(schema, schemas, depth = 0) {
  if (!schema || depth > DEEPEST) return null;
  if (schema.$ref) return example(schemas[schema.$ref.split("/").at(-1)], schemas, depth + 1);
  if (schema.examples?.length) return schema.examples[0];
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  const one = schema.anyOf || schema.oneOf || schema.allOf;
  if (one) return example(one[0], schemas, depth + 1);
  if (schema.type === "object") {
    const names = schema.required?.length ? schema.required : [];
    return Object.fromEntries(names.map((name) => [name, example(schema.properties?.[name], schemas, depth + 1)]));
  }
  return { string: "", integer: schema.minimum ?? 0, number: schema.minimum ?? 0, boolean: false, array: [] }[schema.type] ?? null;
}
