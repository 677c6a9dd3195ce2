// From zero to RATE requests per second at once, over live sessions: no error, and no request that could not be sent.
import { STRICT, TREND_STATS, create, number, ping, remove } from './lib/wakegate.js';

export const options = {
  scenarios: {
    step: {
      executor: 'constant-arrival-rate',
      rate: number('RATE', 1000),
      timeUnit: '1s',
      duration: __ENV.DURATION || '20s',
      preAllocatedVUs: number('VUS', 100),
      maxVUs: number('MAX_VUS', 1000),
      gracefulStop: '30s',
    },
  },
  thresholds: { ...STRICT, dropped_iterations: ['count==0'], start_live: ['p(99)<1000'] },
  summaryTrendStats: TREND_STATS,
  setupTimeout: '120s',
};

export function setup() {
  const sessions = [];
  for (let index = 0; index < number('SESSIONS', 10); index++) sessions.push(create());
  return sessions;
}

export default function (sessions) {
  ping(sessions[Math.floor(Math.random() * sessions.length)]);
}

export function teardown(sessions) {
  sessions.forEach(remove);
}
