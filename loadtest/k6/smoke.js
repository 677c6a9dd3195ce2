// Each operation once, in a few seconds: whether this gateway works.
import { check } from 'k6';
import { STRICT, TREND_STATS, ask, create, hibernate, ping, remove, run } from './lib/wakegate.js';

export const options = { vus: 1, iterations: 1, thresholds: STRICT, summaryTrendStats: TREND_STATS };

export default function () {
  const session = create();
  if (!session) return;
  run(session, 'echo hello', 'hello');
  const put = ask('PUT', '/api/files/data.csv', '1,2\n3,4\n', { session, name: 'write file' });
  check(put, { 'file is written': (r) => r.status >= 200 && r.status < 300 });
  ping(session);
  hibernate(session);
  const got = ask('GET', '/api/files/data.csv', null, { session, name: 'read file' });
  check(got, {
    'file exists after hibernation': (r) => r.status === 200 && r.body === '1,2\n3,4\n',
    'start kind of the answer is wake': (r) => (r.headers['X-Wakegate-Start'] || '').startsWith('wake'),
  });
  remove(session);
  const gone = ask('GET', '/api/files/data.csv', null, { session, name: 'read file' });
  check(gone, { 'ended session answers 404': (r) => r.status === 404 });
}
