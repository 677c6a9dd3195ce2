// A release that fails, as a canary under load: it is rolled back by itself, and no request of the old revision fails.
//
// OLD sessions of the first revision are asked again and again, by a user each, for SECONDS before the release, until it
// is rolled back, and for as long after. NEW users begin sessions meanwhile, of which WEIGHT percent get the canary; its
// answers are all 500.
import exec from 'k6/execution';
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { BASE, STRICT, TREND_STATS, ask, number, remove } from './lib/wakegate.js';

const old = number('OLD', 5);
const fresh = number('NEW', 2);
const seconds = number('SECONDS', 20);
const weight = number('WEIGHT', 50);
const program = open('./lib/agent.py');

const oldRequests = new Counter('old_requests');
const oldFailed = new Counter('old_failed'); // no answer, or any but the old revision's
const canaryRequests = new Counter('canary_requests'); // answered with the failing revision's 500
const newFailed = new Counter('new_failed'); // no answer, or neither revision's
const newRefused = new Counter('new_refused'); // no sandbox within the time for one: the machine is busy
const rolledBack = new Counter('rolled_back');
const untilBack = new Trend('until_rolled_back', true);

// How long it takes is the gateway's to say: a fixed time would end before a release that a busy machine starts slowly.
const once = { executor: 'per-vu-iterations', iterations: 1, maxDuration: '10m' };
export const options = {
  scenarios: {
    old: { ...once, exec: 'askOld', vus: old },
    new: { ...once, exec: 'askNew', vus: fresh },
    release: { ...once, exec: 'release', vus: 1, startTime: `${seconds}s` },
  },
  thresholds: {
    ...STRICT,
    old_requests: ['count>0'],
    old_failed: ['count==0'],
    new_failed: ['count==0'],
    canary_requests: ['count>0'],
    rolled_back: ['count==1'],
  },
  summaryTrendStats: TREND_STATS,
  setupTimeout: '300s',
  teardownTimeout: '120s',
};

function spec(says) {
  const container = {
    name: 'agent', image: 'none', command: ['python3', '-c', program], env: [{ name: 'SAYS', value: says }],
    readinessProbe: { httpGet: { path: '/ready', port: 8080 }, periodSeconds: 1 },
  };
  return { targetPort: [{ port: 8080, protocol: 'HTTP' }], podTemplate: { spec: { containers: [container] } } };
}

function get(place, session) {
  const headers = session ? { 'x-session-id': session } : {};
  return http.get(`${BASE}${place}`, { headers, tags: { name: session ? 'ask' : 'begin' }, timeout: '120s' });
}

export function setup() {
  const name = `canary-${Date.now().toString(36)}`;
  const made = ask('POST', '/v1/agents', { name, spec: spec('good') }, { name: 'create agent' });
  if (!check(made, { 'agent is created': (r) => r.status === 201 })) exec.test.abort(made.body);
  const agent = `/v1/agents/${name}`;
  const place = `/v1/namespaces/${made.json('namespace')}/agent-runtimes/${name}/invocations/`;
  const sessions = [];
  for (let index = 0; index < old; index++) {
    const first = get(place);
    check(first, { 'old revision serves': (r) => r.status === 200 && r.body === 'good' });
    sessions.push(first.headers['X-Session-Id']);
  }
  return { agent, place, sessions };
}

// Do it again and again until the release has been rolled back for SECONDS; looks for that once a second.
function untilAfter(agent, act) {
  let looked = Date.now();
  for (let end = Infinity; Date.now() < end; act()) {
    if (end !== Infinity || Date.now() < looked + 1000) continue;
    looked = Date.now();
    if (told(agent).some((each) => each.startsWith('rolled back'))) end = looked + seconds * 1000;
  }
}

function told(agent) {
  return ask('GET', `${agent}/rollout`, null, { name: 'look' }).json('events').map((each) => each.text);
}

export function askOld({ agent, place, sessions }) {
  const session = sessions[exec.vu.idInTest % old];
  untilAfter(agent, () => {
    const answer = get(place, session);
    oldRequests.add(1);
    const well = answer.status === 200 && answer.body === 'good';
    oldFailed.add(well ? 0 : 1);
    if (!well) console.error(`old revision: ${answer.status} ${answer.error} ${answer.body}`);
  });
}

export function askNew({ agent, place }) {
  untilAfter(agent, () => begin(place));
}

function begin(place) {
  const first = get(place);
  const session = first.headers['X-Session-Id'];
  const answers = [first];
  for (let index = 0; session && index < 3; index++) answers.push(get(place, session));
  for (const each of answers) {
    const canary = each.status === 500 && each.body === 'bad';
    const refused = [429, 504].includes(each.status);
    const well = canary || refused || (each.status === 200 && each.body === 'good');
    canaryRequests.add(canary ? 1 : 0);
    newRefused.add(refused ? 1 : 0);
    newFailed.add(well ? 0 : 1);
    if (!well) console.error(`new session: ${each.status} ${each.error} ${each.body}`);
  }
  if (session) remove(session);
}

export function release({ agent }) {
  const strategy = { canary: { weight }, window: '10m', minRequests: 10 };
  const began = Date.now();
  const changed = ask('PATCH', agent, { spec: spec('bad'), strategy }, { name: 'release' });
  check(changed, { 'release has begun': (r) => r.status === 200 });
  let status = ask('GET', agent, null, { name: 'look' }).json('status');
  while (status.rollout !== null) {
    sleep(0.2);
    status = ask('GET', agent, null, { name: 'look' }).json('status');
  }
  const why = told(agent);
  check(why, { 'rolled back for its errors': (t) => t.some((each) => /^rolled back: .* requests failed/.test(each)) });
  check(status, { 'first revision serves': (s) => s.stable === 1 });
  rolledBack.add(1);
  untilBack.add(Date.now() - began);
}

export function teardown({ agent }) {
  const gone = ask('DELETE', agent, null, { name: 'delete agent' });
  check(gone, { 'agent is deleted': (r) => r.status < 300 });
}
