// Once through everything: does this gateway work at all? A few seconds.
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
    'file outlives the sleep': (r) => r.status === 200 && r.body === '1,2\n3,4\n',
    'answer tells of the wake': (r) => (r.headers['X-Wakegate-Start'] || '').startsWith('wake'),
  });
  remove(session);
  const gone = ask('GET', '/api/files/data.csv', null, { session, name: 'read file' });
  check(gone, { 'ended session is gone': (r) => r.status === 404 });
}
