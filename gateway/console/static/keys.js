// API keys: who may do what. A key is shown once, when it is made or rotated.

import { get, path, post, request } from "./api.js";
import { age, ago, field, h, replace, say, table, until } from "./dom.js";

const ROLES = ["member", "viewer", "operator", "admin", "metrics"];

export async function keys(place, { caller, signal }) {
  if (caller.subject === "anonymous") { // which has no keys to list, and is refused
    replace(place, h("h1", {}, "API keys"), h("p", {}, "This gateway takes every request without a key. Start it with ", h("code", {}, "--auth"), " to give each person and program a key of its own."));
    return;
  }
  const list = h("div"), made = h("div", { "aria-live": "polite" });
  const role = h("select", { id: "key-role" }, ROLES.map((each) => h("option", { value: each }, each)));
  const input = (id, hint) => h("input", { id, placeholder: hint, size: 16 });
  const [tenant, name, expires] = [input("key-tenant", "default"), input("key-name", "what it is for"), input("key-expires", "90d")];
  const form = h("form", {}, h("div", { class: "bar" }, field("Role", role), field("Tenant", tenant), field("Name", name), field("Expires after", expires),
    h("button", { class: "main", type: "submit", id: "create-key" }, "Create key")));
  replace(place, h("h1", {}, "API keys"), form, made, list);

  const show = (key) => {
    const text = h("input", { id: "made-key", readonly: true, value: key.key, size: 60, "aria-label": "The new key" });
    replace(made, h("div", { class: "drop" }, h("p", {}, "This key is shown once; only its hash is kept."), h("div", { class: "bar" }, text,
      h("button", { onclick: async () => { text.select(); await navigator.clipboard?.writeText(key.key).catch(() => {}); say("Copied"); } }, "Copy"),
      h("button", { onclick: () => replace(made) }, "Done"))));
    text.select();
  };
  const act = (label, kind, run) => h("button", { class: kind, onclick: async () => {
    try { await run(); await look(); } catch (error) { say(error.message); }
  } }, label);

  async function look() {
    let found;
    try { found = (await get("/v1/keys", { signal })).keys; } catch (error) { form.hidden = true; replace(list, h("p", {}, error.message)); return; }
    const row = (each) => h("tr", { id: "key-" + each.id }, h("td", { class: "mono" }, each.id), h("td", {}, each.role), h("td", {}, each.tenant), h("td", {}, each.name || ""),
      h("td", {}, each.runtimes?.join(", ") || "all"), h("td", {}, age(each.createdAt)), h("td", {}, ago(each.lastUsedAt) || "never"), h("td", {}, until(each.expiresAt) || "never"),
      h("td", {}, act("Rotate", "", async () => {
        if (confirm(`Rotate ${each.id}? The present key ends at once.`)) show(await post(path`/v1/keys/${each.id}/rotate`, {}));
      }), " ", act("Revoke", "danger", async () => {
        if (confirm(`Revoke ${each.id}? What uses it is refused from then on.`)) await request("DELETE", path`/v1/keys/${each.id}`);
      })));
    replace(list, table(["Key", "Role", "Tenant", "Name", "Runtimes", "Age", "Last use", "Expires", "Actions"], found.map(row), "API keys"));
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = { role: role.value };
    for (const [key, input] of [["tenant", tenant], ["name", name], ["expires", expires]]) if (input.value.trim()) value[key] = input.value.trim();
    try { show(await post("/v1/keys", value)); await look(); } catch (error) { say(error.message); }
  });
  await look();
}
