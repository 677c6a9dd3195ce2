// The gateway's API. The session is a cookie that no script can read and a token that only this tab has; each is worth
// nothing without the other (docs/console.md).

const TOKEN = "wakegate.token";

export class Refused extends Error {
  constructor(status, code, message) { super(message); this.status = status; this.code = code; }
}

const authorization = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: "Bearer " + token } : {};
};

// Each part of an address is encoded, so that an id or a name is never a path.
export const path = (parts, ...values) => parts.reduce((all, part, i) => all + encodeURIComponent(values[i - 1]) + part);
export const filePath = (name) => "/api/files/" + name.split("/").filter((each) => each).map(encodeURIComponent).join("/");

export async function request(method, url, { body, session, headers, raw, signal } = {}) {
  const fields = { ...authorization(), ...(session ? { "x-session-id": session } : {}), ...headers };
  const reply = await fetch(url, { method, body, headers: fields, signal, redirect: "error", cache: "no-store" });
  if (!reply.ok) {
    const text = (await reply.text()).slice(0, 2000);
    // A key that was revoked, or has ended: whoever looks has to log in again (app.js).
    if (reply.status === 401) window.dispatchEvent(new Event("wakegate-unknown"));
    let document = {};
    try { document = JSON.parse(text); } catch { /* no JSON: the text is the message */ }
    throw new Refused(reply.status, document.code, String(document.error || document.message || text || reply.status));
  }
  if (raw) return reply;
  return reply.status === 204 ? null : reply.json();
}

export const get = (url, options) => request("GET", url, options);
export const post = (url, value, options) => request("POST", url, { ...options, body: value && JSON.stringify(value) });

export async function login(key) {
  sessionStorage.removeItem(TOKEN);
  const made = await request("POST", "/v1/console/session", { headers: { authorization: "Bearer " + key } });
  sessionStorage.setItem(TOKEN, made.token);
}

export async function logout() {
  // Of a key that was revoked meanwhile there is nothing to take back: the cookie is worth nothing.
  await request("DELETE", "/v1/console/session").catch(() => {});
  sessionStorage.removeItem(TOKEN);
}

// Server-sent events over fetch, since EventSource sends no Authorization. Goes on after the last id, until aborted.
// `onAnswer` is told whether the gateway answers.
export async function follow(url, onEvent, onAnswer, signal) {
  let last = "";
  while (!signal.aborted) {
    try {
      const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
      const reply = await request("GET", url, { headers, raw: true, signal });
      onAnswer(true);
      for await (const event of events(reply)) {
        if (event.id) last = event.id;
        onEvent(event);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500 && error.status !== 429) return;
      onAnswer(false);
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    if (rest.length > 64 << 20) throw new Error("an event is too large");
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const event = { name: "message", data: "", id: "" };
      for (const line of rest.slice(0, end).split("\n")) {
        const colon = line.indexOf(":");
        const field = line.slice(0, colon);
        const text = line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") event.data += text;
        else if (field === "event") event.name = text;
        else if (field === "id") event.id = text;
      }
      rest = rest.slice(end + 2);
      if (event.data) {
        try { event.data = JSON.parse(event.data); } catch { /* it is text */ }
        yield event;
      }
    }
  }
}
