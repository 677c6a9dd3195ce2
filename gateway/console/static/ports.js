// Servers in the sandbox. Their pages are hostile: a preview is a frame without the origin, a link is a tab without us.

import { get, path, post } from "./api.js";
import { h, replace } from "./dom.js";

export async function ports(place, { id, signal, caller }) {
  const list = h("div", { class: "bar" }), frame = h("div");
  replace(place, h("p", { class: "dim" }, "A preview runs apart from this page; what needs cookies or storage works in a tab of its own."), list, frame);
  async function address(port) {
    const url = path`/v1/sessions/${id}/ports/${port}/`;
    if (caller.subject === "anonymous") return url;
    return url + "?wakegate_token=" + (await post(path`/v1/sessions/${id}/tokens`, { ttl: "1h", ports: [port] })).token;
  }
  async function look() {
    const found = await get("/api/ports", { session: id, signal });
    const numbers = [...new Set((found.ports || []).map((each) => Number(each.port ?? each)))].filter((each) => each > 0 && each < 65536).slice(0, 50);
    replace(list, h("button", { onclick: look }, "Look again"), numbers.length ? "" : h("span", {}, "nothing listens"),
      numbers.map((port) => h("span", {}, h("button", { onclick: async () => {
        replace(frame, h("iframe", { sandbox: "allow-scripts allow-forms", referrerpolicy: "origin", title: "Port " + port, src: await address(port) }));
      } }, "Preview " + port), " ",
      h("button", { onclick: async () => window.open(await address(port), "_blank", "noopener,noreferrer") }, "Open " + port))));
  }
  await look();
}
