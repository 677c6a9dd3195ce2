// One session per user: create, run, think, run again, end. VUS users arrive over RAMP and stay for DURATION.
import { sleep } from 'k6';
import { STRICT, TREND_STATS, create, number, remove, run } from './lib/wakegate.js';

const vus = number('VUS', 10);
export const options = {
  scenarios: {
    users: {
      executor: 'ramping-vus',
      stages: [
        { duration: __ENV.RAMP || '10s', target: vus },
        { duration: __ENV.DURATION || '30s', target: vus },
      ],
      gracefulStop: '60s',
      gracefulRampDown: '60s',
    },
  },
  thresholds: { ...STRICT, start_live: ['p(95)<2000'] },
  summaryTrendStats: TREND_STATS,
};

export default function () {
  const session = create();
  if (!session) return sleep(1);
  run(session, 'echo 1 > kept && echo done', 'done');
  sleep(number('THINK_S', 1) * (0.5 + Math.random()));
  run(session, 'cat kept', '1');
  remove(session);
}
