// VUS users create, use, hibernate, wake and end sessions for DURATION, which may be hours. `scripts/loadtest soak` also
// compares the gateway's memory, descriptors, processes, records and files before and after.
import { sleep } from 'k6';
import { STRICT, TREND_STATS, create, hibernate, number, ping, remove, run } from './lib/wakegate.js';

export const options = {
  scenarios: {
    soak: { executor: 'constant-vus', vus: number('VUS', 6), duration: __ENV.DURATION || '10m', gracefulStop: '60s' },
  },
  thresholds: STRICT,
  summaryTrendStats: TREND_STATS,
};

export default function () {
  const session = create();
  if (!session) return sleep(1);
  run(session, 'head -c 100000 /dev/urandom > data && sha256sum < data > sum && echo ok', 'ok');
  for (let round = 0; round < 1 + Math.floor(Math.random() * 3); round++) {
    hibernate(session);
    run(session, 'sha256sum -c --status sum < data || [ "$(sha256sum < data)" = "$(cat sum)" ] && echo same', 'same');
    for (let visit = 0; visit < 5; visit++) ping(session);
    sleep(number('THINK_S', 0.5) * Math.random());
  }
  remove(session);
}
