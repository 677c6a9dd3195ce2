// API keys: who may do what. A key is shown once, when it is made or rotated.

import { get, path, post, request } from "./api.js";
import { age, h, replace, say, table } from "./dom.js";

const ROLES = ["member", "viewer", "operator", "admin", "metrics"];

export async function keys(place, { signal }) {
  const list = h("div"), made = h("div", { "aria-live": "polite" });
  const role = h("select", { id: "key-role" }, ROLES.map((each) => h("option", { value: each }, each)));
  const field = (id, label, hint) => { const input = h("input", { id, placeholder: hint, size: 16 }); return [h("label", { for: id }, label), input]; };
  const [tenant, name, expires] = [field("key-tenant", "Tenant", "default"), field("key-name", "Name", "what it is for"), field("key-expires", "Expires after", "90d")];
  const form = h("form", {}, h("div", { class: "bar" }, h("label", { for: "key-role" }, "Role"), role, tenant, name, expires,
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
      h("td", {}, each.runtimes?.join(", ") || "all"), h("td", {}, age(each.createdAt)), h("td", {}, each.lastUsedAt ? age(each.lastUsedAt) + " ago" : "never"), h("td", {}, each.expiresAt || "never"),
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
    for (const [key, [, input]] of [["tenant", tenant], ["name", name], ["expires", expires]]) if (input.value.trim()) value[key] = input.value.trim();
    try { show(await post("/v1/keys", value)); await look(); } catch (error) { say(error.message); }
  });
  await look();
}
