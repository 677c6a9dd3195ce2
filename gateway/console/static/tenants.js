// Tenants: what each may hold and what it holds. An administrator changes limits here; others see their own.

import { get, path, request } from "./api.js";
import { h, replace, say, table } from "./dom.js";

export async function tenants(place, { caller, signal }) {
  const admin = caller.role === "admin", list = h("div"), form = h("div");
  replace(place, h("h1", {}, admin ? "Tenants" : "Your tenant"), list, form);

  async function look() {
    const found = admin ? (await get("/v1/tenants", { signal })).tenants : [await get("/v1/tenants/self", { signal })];
    const row = (each) => h("tr", {}, h("td", { class: "mono" }, each.name), h("td", { class: "wrap" }, limits(each)),
      admin ? h("td", {}, h("button", { onclick: () => edit(each) }, "Change"), " ", h("button", { class: "danger", onclick: () => remove(each.name) }, "Delete")) : "");
    replace(list, found.length ? table(["Tenant", "Used of its limits", ...(admin ? ["Actions"] : [])], found.map(row), "Tenants") : h("p", {}, "None: everything belongs to the tenant default, without limits."),
      admin ? h("div", { class: "bar" }, h("button", { class: "main", id: "new-tenant", onclick: () => edit(null) }, "New tenant")) : "");
  }

  function edit(tenant) {
    const name = h("input", { id: "tenant-name", required: true, value: tenant?.name || "", disabled: !!tenant, size: 24 });
    const text = h("textarea", { id: "tenant-limits", spellcheck: "false" });
    text.value = JSON.stringify(tenant?.limits || { sessions: 100 }, null, 2);
    const problem = h("p", { class: "error", role: "alert" });
    const made = h("form", {}, h("h2", {}, tenant ? `Limits of ${tenant.name}` : "New tenant"),
      h("div", { class: "bar" }, h("label", { for: "tenant-name" }, "Name"), name), h("label", { for: "tenant-limits" }, "Limits, as JSON"), text,
      h("p", { class: "dim" }, "Lower than what is used ends nothing; it refuses what comes next."), problem,
      h("div", { class: "bar" }, h("button", { class: "main", type: "submit" }, "Save"), h("button", { type: "button", onclick: () => replace(form) }, "Cancel")));
    made.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const body = JSON.stringify({ limits: JSON.parse(text.value) });
        await request("PUT", path`/v1/tenants/${name.value.trim()}`, { body });
        replace(form);
        say("Saved");
        await look();
      } catch (error) { problem.textContent = error.message; }
    });
    replace(form, made);
    (tenant ? text : name).focus();
  }

  async function remove(name) {
    if (!confirm(`Delete the tenant ${name}? Its keys are revoked; its sessions go on until they end.`)) return;
    await request("DELETE", path`/v1/tenants/${name}`).catch((error) => say(error.message));
    await look();
  }
  await look();
}

function limits(tenant) {
  const names = Object.keys(tenant.limits);
  if (!names.length) return "no limits";
  return names.map((name, i) => {
    const used = tenant.used[name];
    const shown = typeof tenant.limits[name] === "object" ? JSON.stringify(tenant.limits[name]) : tenant.limits[name];
    return [i ? ", " : "", h("span", { class: used >= tenant.limits[name] ? "error" : "" }, `${name} ${used === undefined ? "" : used + " of "}${shown}`)];
  });
}
