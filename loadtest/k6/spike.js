// USERS new sessions at the same time, many more than the pool has: slow answers and 429 are allowed, a 5xx is not.
import { STRICT, TREND_STATS, create, number, remove, run } from './lib/wakegate.js';

const users = number('USERS', 200);
export const options = {
  scenarios: {
    spike: { executor: 'per-vu-iterations', vus: users, iterations: 1, maxDuration: __ENV.MAX_DURATION || '5m' },
  },
  thresholds: { ...STRICT, iterations: [`count==${users}`] },
  summaryTrendStats: TREND_STATS,
};

export default function () {
  const session = create();
  if (!session) return;
  run(session, 'echo here', 'here');
  remove(session);
}
