// Long streams: VUS clients follow a process that writes a line every 100 ms for SECONDS. Every line arrives, in order.
import { check } from 'k6';
import { STRICT, TREND_STATS, ask, create, number, remove } from './lib/wakegate.js';

const seconds = number('SECONDS', 20);
const lines = seconds * 10;
export const options = {
  scenarios: { streams: { executor: 'per-vu-iterations', vus: number('VUS', 10), iterations: 1, maxDuration: '10m' } },
  thresholds: STRICT,
  summaryTrendStats: TREND_STATS,
};

export default function () {
  const session = create();
  if (!session) return;
  const script = `i=0; while [ $i -lt ${lines} ]; do echo line $i; i=$((i + 1)); sleep 0.1; done`;
  const started = ask('POST', '/api/processes', { command: ['sh', '-c', script] }, { session, name: 'start process' });
  if (check(started, { 'process is started': (r) => r.status === 201 })) {
    const path = `/api/processes/${started.json('id')}/logs?follow=true`;
    const stream = ask('GET', path, null, { session, name: 'follow', timeout: `${seconds * 5 + 60}s` });
    check(stream, {
      'stream ends with the exit event': (r) => r.status === 200 && r.body.includes('event: exit'),
      'every line arrives in order': (r) => (r.body.match(/line \d+/g) || []).join() === expected(),
    });
  }
  remove(session);
}

function expected() {
  const all = [];
  for (let index = 0; index < lines; index++) all.push(`line ${index}`);
  return all.join();
}
