// Shared by all scenarios: requests and sessions. BASE_URL names the gateway, RUNTIME the runtime.
//
// A session is its id; each request sends it in x-session-id, and each answer has the start kind in x-wakegate-start.
// Times are recorded by start kind, because one percentile over live and cold answers describes neither.
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

export const BASE = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '');
export const RUNTIME = __ENV.RUNTIME || 'default/my-interpreter';
const [NAMESPACE, NAME] = RUNTIME.split('/');
const RETRY_LIMIT_S = Number(__ENV.RETRY_LIMIT_S || 120); // for how long a 429 is retried

const times = {
  live: new Trend('start_live', true),
  warm: new Trend('start_warm', true),
  cold: new Trend('start_cold', true),
  wake: new Trend('start_wake', true),
  'wake-cold': new Trend('start_wake_cold', true),
};
export const serverErrors = new Counter('server_errors'); // 5xx
export const brokenRequests = new Counter('broken_requests'); // without an answer
export const rejections = new Counter('rejections'); // 429, each retried after Retry-After

// Thresholds of every scenario: no request fails, every check passes.
export const STRICT = {
  server_errors: ['count==0'],
  broken_requests: ['count==0'],
  checks: ['rate==1'],
};
// Statistics in the summary; k6 leaves `count` out by default, which the report needs for each start kind.
export const TREND_STATS = ['count', 'min', 'avg', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'];

// A number from the environment (`k6 run -e VUS=50`), else the standard.
export function number(name, standard) {
  return Number(__ENV[name] || standard);
}

function record(response) {
  if (response.status === 0) brokenRequests.add(1);
  else if (response.status >= 500) serverErrors.add(1);
  const kind = response.headers['X-Wakegate-Start'];
  if (kind in times && response.status < 400) times[kind].add(response.timings.duration);
  return response;
}

// Send a request; a 429 is retried after Retry-After for up to RETRY_LIMIT_S.
export function ask(method, path, body, { session, name, timeout = '120s', headers = {} } = {}) {
  const params = { headers: { 'content-type': 'application/json', ...headers }, tags: { name: name || path }, timeout };
  if (session) params.headers['x-session-id'] = session;
  const text = body === undefined || body === null || typeof body === 'string' ? body : JSON.stringify(body);
  const until = Date.now() + RETRY_LIMIT_S * 1000;
  for (;;) {
    const response = record(http.request(method, BASE + path, text, params));
    if (response.status !== 429 || Date.now() > until) return response;
    rejections.add(1);
    sleep(Number(response.headers['Retry-After'] || 1) * (0.5 + Math.random()));
  }
}

// Create a session. Returns its id, or null.
export function create(fields = {}) {
  const response = ask('POST', '/v1/sessions', { runtime: RUNTIME, ...fields }, { name: 'create' });
  if (!check(response, { 'session is created': (r) => r.status === 201 })) return null;
  return response.json('id');
}

// Run a shell script in the session's sandbox. Returns whether it exited with 0 and printed `expected`, if given.
export function run(session, script, expected) {
  const response = ask('POST', '/api/execute', { command: ['sh', '-c', script] }, { session, name: 'execute' });
  return check(response, {
    'command exits with 0': (r) => r.status === 200 && r.json('exit_code') === 0,
    'command output is as expected': (r) => expected === undefined || (r.status === 200 && r.json('stdout').trim() === expected),
  });
}

// A request that costs the sandbox next to nothing, so that its time is that of the gateway.
export function ping(session) {
  const path = `/v1/namespaces/${NAMESPACE}/code-interpreters/${NAME}/invocations/health`;
  return check(ask('GET', path, null, { session, name: 'ping' }), { 'sandbox answers': (r) => r.status === 200 });
}

export function hibernate(session) {
  const response = ask('POST', `/v1/sessions/${session}/hibernate`, null, { name: 'hibernate' });
  return check(response, { 'session is hibernated': (r) => r.status === 200 && r.json('state') === 'hibernated' });
}

export function remove(session) {
  const response = ask('DELETE', `/v1/sessions/${session}`, null, { name: 'delete' });
  return check(response, { 'session is ended': (r) => r.status === 204 });
}
