// Makes elements. Whatever a sandbox, a session's metadata or an error says becomes text, never markup: nothing here or
// in any other module sets innerHTML, and addresses are made by `path` alone.

export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false)
    .map((each) => (each instanceof Node ? each : document.createTextNode(shown(each)))));
  return made;
}

// Controls and marks that turn the direction of text round are shown as what they are.
export const shown = (value) => String(value)
  .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    (each) => "\\u" + each.charCodeAt(0).toString(16).padStart(4, "0"));

export const replace = (element, ...children) => { element.replaceChildren(...children.flat(Infinity)); return element; };
export const card = (label, value, id) => h("div", { class: "card" }, h("b", { id }, value), h("span", {}, label));

export function table(titles, rows, label) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, titles.map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", {}, rows)));
}

export function age(moment) {
  if (!moment) return "";
  const seconds = Math.max(0, (Date.now() - Date.parse(moment)) / 1000);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (seconds >= size) return Math.round(seconds / size) + unit;
  }
  return Math.round(seconds) + "s";
}

export const size = (bytes) => (bytes < 1024 ? bytes + " B" : bytes < 1 << 20 ? (bytes / 1024).toFixed(1) + " KiB"
  : (bytes / (1 << 20)).toFixed(1) + " MiB");

let clearing = 0;
export function say(text) {
  const place = document.getElementById("status");
  place.textContent = shown(text);
  clearTimeout(clearing);
  clearing = setTimeout(() => { place.textContent = ""; }, 6000);
}
