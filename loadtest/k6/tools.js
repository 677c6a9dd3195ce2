// Steady tool calls: RATE per second in an open loop, over SESSIONS live sessions.
import { STRICT, TREND_STATS, create, number, remove, run } from './lib/wakegate.js';

const rate = number('RATE', 20);
export const options = {
  scenarios: {
    calls: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: number('VUS', rate),
      maxVUs: number('MAX_VUS', rate * 10),
      gracefulStop: '30s',
    },
  },
  thresholds: { ...STRICT, dropped_iterations: ['count==0'], start_live: ['p(95)<1000'] },
  summaryTrendStats: TREND_STATS,
  setupTimeout: '120s',
};

export function setup() {
  const sessions = [];
  for (let index = 0; index < number('SESSIONS', 10); index++) sessions.push(create());
  return sessions;
}

export default function (sessions) {
  run(sessions[Math.floor(Math.random() * sessions.length)], 'echo $((6 * 7))', '42');
}

export function teardown(sessions) {
  sessions.forEach(remove);
}
