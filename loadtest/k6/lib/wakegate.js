// Sessions for k6: what every scenario shares. Any gateway, by BASE_URL; any runtime, by RUNTIME.
//
// A session is its id; each request carries it in x-session-id, and each answer says in x-wakegate-start how its sandbox
// came to be. Times are kept by that kind, because one percentile over live and cold answers says nothing of either.
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

export const BASE = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '');
export const RUNTIME = __ENV.RUNTIME || 'default/my-interpreter';
const [NAMESPACE, NAME] = RUNTIME.split('/');
const PATIENCE_S = Number(__ENV.PATIENCE_S || 120); // how long a 429 is obeyed and tried again

const times = {
  live: new Trend('start_live', true),
  warm: new Trend('start_warm', true),
  cold: new Trend('start_cold', true),
  wake: new Trend('start_wake', true),
  'wake-cold': new Trend('start_wake_cold', true),
};
export const serverErrors = new Counter('server_errors'); // 5xx
export const brokenRequests = new Counter('broken_requests'); // no answer at all
export const rejections = new Counter('rejections'); // 429, each obeyed

// Thresholds that every scenario has: nothing fails, every check holds.
export const STRICT = {
  server_errors: ['count==0'],
  broken_requests: ['count==0'],
  checks: ['rate==1'],
};
// Counters without a sample do not show in a summary; these do.
export const TREND_STATS = ['count', 'min', 'avg', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'];

// n, or what the environment says instead: `k6 run -e VUS=50`.
export function number(name, standard) {
  return Number(__ENV[name] || standard);
}

function seen(response) {
  if (response.status === 0) brokenRequests.add(1);
  else if (response.status >= 500) serverErrors.add(1);
  const kind = response.headers['X-Wakegate-Start'];
  if (kind in times && response.status < 400) times[kind].add(response.timings.duration);
  return response;
}

// A request; 429 is obeyed: wait as long as Retry-After says, try again, until patience ends.
export function ask(method, path, body, { session, name, timeout = '120s', headers = {} } = {}) {
  const params = { headers: { 'content-type': 'application/json', ...headers }, tags: { name: name || path }, timeout };
  if (session) params.headers['x-session-id'] = session;
  const text = body === undefined || body === null || typeof body === 'string' ? body : JSON.stringify(body);
  const until = Date.now() + PATIENCE_S * 1000;
  for (;;) {
    const response = seen(http.request(method, BASE + path, text, params));
    if (response.status !== 429 || Date.now() > until) return response;
    rejections.add(1);
    sleep(Number(response.headers['Retry-After'] || 1) * (0.5 + Math.random()));
  }
}

// A new session's id.
export function create(fields = {}) {
  const response = ask('POST', '/v1/sessions', { runtime: RUNTIME, ...fields }, { name: 'create' });
  if (!check(response, { 'session is created': (r) => r.status === 201 })) return null;
  return response.json('id');
}

// Run a shell script in the session's sandbox; true if it ended with 0 and, where given, printed that.
export function run(session, script, expected) {
  const response = ask('POST', '/api/execute', { command: ['sh', '-c', script] }, { session, name: 'execute' });
  return check(response, {
    'command has run': (r) => r.status === 200 && r.json('exit_code') === 0,
    'its output is right': (r) => expected === undefined || (r.status === 200 && r.json('stdout').trim() === expected),
  });
}

// A request that costs the sandbox next to nothing: what is left is the gateway.
export function ping(session) {
  const path = `/v1/namespaces/${NAMESPACE}/code-interpreters/${NAME}/invocations/health`;
  return check(ask('GET', path, null, { session, name: 'ping' }), { 'sandbox answers': (r) => r.status === 200 });
}

export function hibernate(session) {
  const response = ask('POST', `/v1/sessions/${session}/hibernate`, null, { name: 'hibernate' });
  return check(response, { 'session sleeps': (r) => r.status === 200 && r.json('state') === 'hibernated' });
}

export function remove(session) {
  const response = ask('DELETE', `/v1/sessions/${session}`, null, { name: 'delete' });
  return check(response, { 'session is ended': (r) => r.status === 204 });
}
