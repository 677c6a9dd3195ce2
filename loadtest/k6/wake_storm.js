// SESSIONS hibernated sessions get REQUESTS requests each at once: all are answered, each session wakes once.
import { check } from 'k6';
import { Counter } from 'k6/metrics';
import { STRICT, TREND_STATS, ask, create, hibernate, number, remove, run } from './lib/wakegate.js';

const sessionsWanted = number('SESSIONS', 20);
const requests = number('REQUESTS', 5);
const vus = sessionsWanted * requests;
const woken = new Counter('woken');
export const options = {
  scenarios: { storm: { executor: 'per-vu-iterations', vus, iterations: 1, maxDuration: '5m' } },
  thresholds: { ...STRICT, iterations: [`count==${vus}`] },
  summaryTrendStats: TREND_STATS,
  setupTimeout: '300s',
  teardownTimeout: '120s',
};

export function setup() {
  const sessions = [];
  for (let index = 0; index < sessionsWanted; index++) {
    const session = create();
    run(session, `echo ${index} > mine`);
    hibernate(session);
    sessions.push(session);
  }
  return sessions;
}

export default function (sessions) {
  const index = (__VU - 1) % sessionsWanted;
  const response = ask('GET', '/api/files/mine', null, { session: sessions[index], name: 'read file' });
  check(response, { 'the session has its own file': (r) => r.status === 200 && r.body === `${index}\n` });
  if ((response.headers['X-Wakegate-Start'] || '').startsWith('wake')) woken.add(1);
}

export function teardown(sessions) {
  sessions.forEach(remove);
}
