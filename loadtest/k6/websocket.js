// WebSockets to a server that runs in the sandbox: VUS sockets, each sends MESSAGES and receives an echo of each.
import { WebSocket } from 'k6/experimental/websockets';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { BASE, STRICT, TREND_STATS, ask, create, number, remove } from './lib/wakegate.js';

const messages = number('MESSAGES', 100);
const vus = number('VUS', 20);
const echoed = new Counter('ws_echoed');
const roundTrip = new Trend('ws_round_trip', true);
const server = open('./lib/echo_server.py');

export const options = {
  scenarios: { sockets: { executor: 'per-vu-iterations', vus, iterations: 1, maxDuration: '5m' } },
  thresholds: { ...STRICT, ws_echoed: [`count==${vus * messages}`] },
  summaryTrendStats: TREND_STATS,
  setupTimeout: '120s',
};

export function setup() {
  const session = create();
  const process = { command: ['python3', '-c', server, '8000'], name: 'echo' };
  const started = ask('POST', '/api/processes', process, { session, name: 'start process' });
  check(started, { 'server is started': (r) => r.status === 201 });
  const listens = ask('GET', '/api/ports?wait=8000&timeout=30s', null, { session, name: 'wait for port' });
  check(listens, { 'server listens': (r) => r.status === 200 });
  return session;
}

export default function (session) {
  const url = `${BASE.replace(/^http/, 'ws')}/v1/sessions/${session}/ports/8000/`;
  const socket = new WebSocket(url);
  let sent = 0;
  let at = 0;
  const send = () => {
    at = Date.now();
    socket.send(`message ${sent++}`);
  };
  socket.onopen = send;
  socket.onmessage = (event) => {
    roundTrip.add(Date.now() - at);
    if (event.data === `message ${sent - 1}`) echoed.add(1);
    if (sent < messages) send();
    else socket.close();
  };
  socket.onerror = (event) => check(event, { [`no error: ${event.error}`]: () => false });
}

export function teardown(session) {
  remove(session);
}
