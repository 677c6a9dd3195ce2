// Files of a session: browse, view, download, upload by dropping.

import { filePath, get, request } from "./api.js";
import { h, replace, say, shown, size, table, when } from "./dom.js";

const VIEW = 256 << 10, MOST = 2000;
const DOWNLOAD = 512 << 20; // a page holds the whole in memory

export async function files(place, { id, signal }) {
  let folder = "";
  const where = h("span", { class: "mono", id: "folder" }), list = h("div"), view = h("div");
  const choose = h("input", { type: "file", multiple: true, id: "upload", "aria-label": "Upload files" });
  const drop = h("div", { class: "drop" }, "Drop files here, or ", choose);
  replace(place, h("div", { class: "bar" }, where), drop, list, view);
  const join = (name) => (folder ? folder + "/" : "") + name;

  async function load() {
    const found = await get("/api/files?path=" + encodeURIComponent(folder || "."), { session: id, signal });
    where.textContent = "/workspace/" + shown(folder);
    const up = folder ? [h("tr", {}, h("td", {}, h("button", { onclick: () => open(folder.split("/").slice(0, -1).join("/")) }, ".."), h("td"), h("td"), h("td")))] : [];
    const rows = found.files.slice(0, MOST).map((each) => h("tr", {},
      h("td", { class: "mono" }, h("button", { disabled: Boolean(each.name_encoded), onclick: () => (each.is_dir ? open(join(each.name)) : show(each)) }, each.name + (each.is_dir ? "/" : ""))),
      h("td", {}, each.is_dir ? "" : size(each.size)), h("td", {}, when(each.modified)),
      h("td", {}, each.is_dir || each.name_encoded ? "" : h("button", { "aria-label": "Download " + shown(each.name), onclick: () => download(each).catch((error) => say(error.message)) }, "Download"))));
    replace(list, table(["Name", "Size", "Changed", "Actions"], [...up, ...rows], "Files"), found.files.length > MOST ? h("p", { class: "dim" }, `The first ${MOST} of ${found.files.length}.`) : rows.length ? "" : h("p", { class: "empty" }, "No files in this folder yet."));
  }
  const open = (to) => { folder = to; replace(view); load().catch((error) => say(error.message)); };

  async function show(file) {
    const reply = await request("GET", filePath(join(file.name)), { session: id, signal, raw: true, headers: { range: `bytes=0-${VIEW - 1}` } })
      .catch((error) => (file.size ? Promise.reject(error) : null));
    const bytes = reply ? new Uint8Array(await reply.arrayBuffer()) : new Uint8Array();
    const binary = bytes.subarray(0, 4096).includes(0);
    replace(view, h("h2", {}, file.name), binary ? h("p", {}, "Not a text; download it.")
      : h("pre", { tabindex: "0" }, new TextDecoder().decode(bytes) + (file.size > VIEW ? "\n… the rest is left out" : "")));
  }
  // As a download with a type of our own: nothing that a sandbox wrote is ever opened as a page.
  async function download({ name, size: bytes }) {
    if (bytes > DOWNLOAD) { say(`Larger than ${size(DOWNLOAD)}: wakegate cp ${id}:${join(name)} . brings it.`); return; }
    const reply = await request("GET", filePath(join(name)), { session: id, raw: true });
    const url = URL.createObjectURL(new Blob([await reply.arrayBuffer()], { type: "application/octet-stream" }));
    h("a", { href: url, download: name.replace(/[^\w .-]/g, "_") }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
  async function upload(chosen) {
    for (const file of chosen) {
      try { await request("PUT", filePath(join(file.name)), { session: id, body: file }); say("uploaded " + file.name); }
      catch (error) { say(file.name + ": " + error.message); }
    }
    await load();
  }
  choose.addEventListener("change", () => upload([...choose.files]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") upload([...event.dataTransfer.files]);
    });
  }
  await load();
}
