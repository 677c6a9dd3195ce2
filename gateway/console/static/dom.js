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

// Of ten thousand rows a browser shows a thousand in a moment, and all of them after many seconds: the others are
// searched for. What was typed stays where a page draws its table anew.
const MOST_ROWS = 1000, typed = new Map();

export function table(titles, rows, label) {
  const body = h("tbody", {}, rows.length > MOST_ROWS ? [] : rows);
  const shown = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, titles.map((each) => h("th", { scope: "col" }, each)))), body));
  if (rows.length <= MOST_ROWS) return shown;
  const said = h("span", { class: "dim", role: "status" });
  const search = h("input", { type: "search", size: 24, maxlength: 200, "aria-label": "Search " + label, value: typed.get(label) || "", oninput: () => draw() });
  function draw() {
    typed.set(label, search.value);
    const words = search.value.toLowerCase().split(/\s+/).filter((each) => each);
    const found = words.length ? rows.filter((each) => words.every((word) => each.textContent.toLowerCase().includes(word))) : rows;
    body.replaceChildren(...found.slice(0, MOST_ROWS));
    said.textContent = found.length > MOST_ROWS ? `the first ${MOST_ROWS} of ${found.length}` : `${found.length} of ${rows.length}`;
  }
  draw();
  return h("div", {}, h("div", { class: "bar" }, search, said), shown);
}

// A label that stays beside its control, however narrow the page is.
export const field = (label, control) => h("span", { class: "field" }, h("label", { for: control.id }, label), control);

// Cut and not rounded, as the command line writes it: 45s, 1m29s, 12m, 3h5m, 23h.
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  for (const [unit, size, less, smaller] of [["d", 86400, "h", 3600], ["h", 3600, "m", 60], ["m", 60, "s", 1]]) {
    const count = Math.floor(whole / size), rest = Math.floor((whole % size) / smaller);
    if (count) return count + unit + (count < 10 && rest ? rest + less : "");
  }
  return whole + "s";
}

// Moments, as RFC 3339, in the words of the person's own place; the whole is in the title. Those of `age`, `ago` and
// `until` are kept true by `renew`, or a page that is left open would say "5s ago" for hours.
const local = (moment) => new Date(moment).toLocaleString();
const spans = {
  age: (seconds) => duration(seconds), ago: (seconds) => duration(seconds) + " ago",
  until: (seconds) => (seconds < 0 ? "in " + duration(-seconds) : duration(seconds) + " ago"),
};
const since = (moment, kind) => spans[kind]((Date.now() - Date.parse(moment)) / 1000);
const span = (moment, kind) => (moment ? h("time", { datetime: moment, title: local(moment), "data-kind": kind }, since(moment, kind)) : "");
export const age = (moment) => span(moment, "age"), ago = (moment) => span(moment, "ago"), until = (moment) => span(moment, "until");
export function renew() {
  for (const each of document.querySelectorAll("time[data-kind]")) each.textContent = since(each.dateTime, each.dataset.kind);
}
export function when(moment) {
  if (!moment) return "";
  const made = new Date(moment), today = made.toDateString() === new Date().toDateString();
  const clock = made.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  return h("time", { datetime: moment, title: local(moment) }, today ? clock : made.toLocaleDateString([], { day: "numeric", month: "short" }) + " " + clock);
}

export function size(bytes) {
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return (unit ? value.toFixed(value < 10 ? 1 : 0) : value) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
}

let clearing = 0;
export function say(text) {
  const place = document.getElementById("status");
  place.textContent = shown(text);
  clearTimeout(clearing);
  clearing = setTimeout(() => { place.textContent = ""; }, 6000);
}
