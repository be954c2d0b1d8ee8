import { strict as assert } from 'node:assert';
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request, type IncomingMessage } from 'node:http';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { spawnSync } from 'node:child_process';
import type { VringError } from '../base/errors.ts';
import { ROUTES } from './api-routes.ts';
import { buildConfig } from './config.ts';
import { FakeSwitch } from './fake-switch.ts';
import { EventLog, readinessLine, SwitchDaemon } from './switch-daemon.ts';

const directory = mkdtempSync(join(tmpdir(), 'vring-api-'));
const control = join(directory, 'switch.sock');
let daemon: SwitchDaemon;
let fake: FakeSwitch;

before(async () => {
  const ports = ['vm0=vhost-user:/run/vm0.sock,vlan=10', 'up=tap:tap0,trunk=all'];
  const config = buildConfig({ ports, control, http: '127.0.0.1:0' });
  daemon = await SwitchDaemon.start(config, async (c) => (fake = await FakeSwitch.start(c)));
});

after(async () => {
  await daemon.close();
  rmSync(directory, { recursive: true, force: true });
});

type Answer = {
  status: number;
  headers: IncomingMessage['headers'];
  text: string;
  /** Tests look into it without ceremony; a wrong path fails them. */
  json: ReturnType<typeof JSON.parse>;
};
type Options = { method?: string; body?: string; headers?: Record<string, string> };

function open(path: string, options: Options & { socketPath?: string; port?: number } = {}) {
  const { body, ...rest } = options;
  const where = rest.port === undefined ? { socketPath: control } : { host: '127.0.0.1' };
  return new Promise<IncomingMessage>((resolve, reject) => {
    const outgoing = request({ ...where, path, agent: false, ...rest }, resolve);
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

async function call(path: string, options: Parameters<typeof open>[1] = {}): Promise<Answer> {
  const response = await open(path, options);
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) text += chunk;
  const isJson = response.headers['content-type']?.includes('json');
  const json = isJson ? JSON.parse(text) : undefined;
  return { status: response.statusCode ?? 0, headers: response.headers, text, json };
}

const post = (body: unknown) => ({ method: 'POST', body: JSON.stringify(body) });
const patch = (body: unknown) => ({ method: 'PATCH', body: JSON.stringify(body) });

test('ports are listed, shown, added, changed and removed', async () => {
  const list = await call('/v1/ports');
  assert.deepEqual(
    [list.status, list.json.map((p: { name: string }) => p.name)],
    [200, ['vm0', 'up']],
  );
  const added = await call(
    '/v1/ports',
    post({ name: 'vm1', kind: 'vhost-user', path: '/run/vm1.sock' }),
  );
  assert.deepEqual([added.status, added.json.endpoint], [201, '/run/vm1.sock']);
  const changed = await call('/v1/ports/vm1', patch({ linkUp: false, vlan: 7 }));
  assert.deepEqual([changed.json.state, changed.json.vlan], ['down', { mode: 'access', vid: 7 }]);
  assert.equal((await call('/v1/ports/vm1')).json.linkUp, false);
  const removed = await call('/v1/ports/vm1', { method: 'DELETE' });
  assert.deepEqual([removed.status, removed.text], [204, '']);
  assert.equal((await call('/v1/ports/vm1')).status, 404);
});

const REFUSALS: readonly (readonly [
  path: string,
  options: Options,
  status: number,
  code: string,
  message: RegExp,
])[] = [
  ['/v1/ports/nix', {}, 404, 'ERR_VRING_PORT_NOT_FOUND', /no port named "nix"/],
  ['/v1/ports/nix', patch({ linkUp: true }), 404, 'ERR_VRING_PORT_NOT_FOUND', /nix/],
  ['/v1/ports/nix', { method: 'DELETE' }, 404, 'ERR_VRING_PORT_NOT_FOUND', /nix/],
  ['/v1/ports/nix/capture', {}, 404, 'ERR_VRING_PORT_NOT_FOUND', /nix/],
  ['/v1/macs?port=nix', {}, 404, 'ERR_VRING_PORT_NOT_FOUND', /nix/],
  ['/v1/macs?port=nix', { method: 'DELETE' }, 404, 'ERR_VRING_PORT_NOT_FOUND', /nix/],
  [
    '/v1/hand-over',
    post({ socket: 'x', format: 'y', version: '1' }),
    400,
    'ERR_VRING_CONFIG',
    /^format: "y" is not a whole number/,
  ],
  [
    '/v1/hand-over',
    post({ socket: 'x', format: 1, version: '1', sokcet: 'x' }),
    400,
    'ERR_VRING_CONFIG',
    /^sokcet: unknown key; did you mean "socket"\?/,
  ],
  [
    '/v1/ports',
    post({ name: 'vm0', kind: 'tap', interface: 'x' }),
    409,
    'ERR_VRING_PORT_EXISTS',
    /"vm0" already belongs to port vm0/,
  ],
  ['/v1/ports', post({ name: 'x', kind: 'tap' }), 400, 'ERR_VRING_CONFIG', /^interface: missing/],
  ['/v1/ports', post([]), 400, 'ERR_VRING_CONFIG', /\[\] is not/],
  ['/v1/ports', { method: 'POST' }, 400, 'ERR_VRING_API_JSON', /the body is not JSON/],
  ['/v1/ports', { method: 'POST', body: '{' }, 400, 'ERR_VRING_API_JSON', /the body is not JSON/],
  [
    '/v1/ports/vm0',
    patch({}),
    400,
    'ERR_VRING_CONFIG',
    /nothing to change; give vlan, linkUp, mtu or policy/,
  ],
  ['/v1/ports/vm0', patch({ vlan: 0 }), 400, 'ERR_VRING_CONFIG', /^vlan: 0 is not a whole number/],
  ['/v1/ports/vm0', patch({ linkup: true }), 400, 'ERR_VRING_CONFIG', /did you mean "linkUp"/],
  ['/v1/ports/vm0/capture?snapLen=1', {}, 400, 'ERR_VRING_CONFIG', /^snapLen: /],
  ['/v1/ports/vm0/capture?snaplen=99', {}, 400, 'ERR_VRING_CONFIG', /did you mean "snapLen"/],
  ['/v1/events?follow=yes', {}, 400, 'ERR_VRING_CONFIG', /^follow: "yes" is not 0 or 1/],
  ['/v1/nothing', {}, 404, 'ERR_VRING_API_NOT_FOUND', /openapi.json lists/],
  ['/v1/ports', { method: 'PUT' }, 405, 'ERR_VRING_API_METHOD', /knows GET, POST, not PUT/],
  [`/v1/${'a'.repeat(2100)}`, {}, 414, 'ERR_VRING_API_TOO_LARGE', /at most 2048/],
  [
    '/v1/ports',
    { method: 'POST', body: ' '.repeat(65537) },
    413,
    'ERR_VRING_API_TOO_LARGE',
    /at most 65536/,
  ],
];

for (const [path, options, status, code, message] of REFUSALS) {
  test(`${options.method ?? 'GET'} ${path.slice(0, 40)} is refused with ${status}`, async () => {
    const answer = await call(path, options);
    assert.equal(answer.status, status);
    assert.equal(answer.json.error.code, code);
    assert.match(answer.json.error.message, message);
    if (status === 405) assert.equal(answer.headers.allow, 'GET, POST');
  });
}

test('a config error names the path, and all problems', async () => {
  const { json } = await call('/v1/ports', post({ name: 'x', kind: 'tap', interface: '', mtu: 1 }));
  assert.equal(json.error.problems.length, 2);
  assert.ok(['mtu', 'interface'].includes(json.error.path));
});

test('chunked bodies have the same limit', async () => {
  const status = await new Promise((resolve, reject) => {
    const outgoing = request(
      { socketPath: control, path: '/v1/ports', method: 'POST' },
      (response) => {
        resolve(response.statusCode);
        outgoing.destroy();
      },
    );
    outgoing.on('error', reject);
    for (let i = 0; i < 100; i++) outgoing.write(Buffer.alloc(1024));
    outgoing.end();
  });
  assert.equal(status, 413);
});

test('garbage instead of HTTP ends that connection only', async () => {
  const socket = connect(control);
  socket.write('\x00\x01\x02 nonsense\r\n\r\n');
  let text = '';
  for await (const chunk of socket.setEncoding('latin1')) text += chunk;
  assert.match(text, /^HTTP\/1.1 400/);
  assert.equal((await call('/healthz')).text, 'ok\n');
});

test('learned addresses are listed by port and flushed', async () => {
  const all = (await call('/v1/macs')).json;
  assert.equal(all.length, 2);
  assert.deepEqual((await call('/v1/macs?port=up')).json, [all[1]]);
  assert.deepEqual((await call('/v1/macs?port=up', { method: 'DELETE' })).json, { flushed: 1 });
  assert.deepEqual((await call('/v1/macs', { method: 'DELETE' })).json, { flushed: 1 });
});

test('events are listed and followed, as lines and as server-sent events', async () => {
  fake.emitEvent('test', 'vm0', 'first');
  const last = await call('/v1/events?last=1');
  assert.equal(last.json.length, 1);
  assert.equal(last.json[0].message, 'first');
  assert.deepEqual((await call('/v1/events?last=0')).json, []);

  const lines = await open('/v1/events?follow=1&last=1');
  assert.equal(lines.headers['content-type'], 'application/x-ndjson');
  const events = await open('/v1/events?follow=1', { headers: { accept: 'text/event-stream' } });
  assert.equal(events.headers['content-type'], 'text/event-stream');
  await sleep(20);
  assert.equal(daemon.api.openStreams, 2);
  fake.emitEvent('test', 'vm0', 'second');
  let text = '';
  for await (const chunk of lines.setEncoding('utf8')) {
    text += chunk;
    if (text.includes('second')) break;
  }
  assert.deepEqual(
    text
      .trim()
      .split('\n')
      .map((l) => JSON.parse(l).message),
    ['first', 'second'],
  );
  let sse = '';
  for await (const chunk of events.setEncoding('utf8')) {
    sse += chunk;
    if (sse.includes('second')) break;
  }
  assert.match(sse, /^: .*\n\nevent: test\ndata: \{.*second.*\}\n\n$/);
  await until(() => daemon.api.openStreams === 0);
});

test('who reads events too slowly loses some, is told, and costs no memory', async () => {
  const slow = await open('/v1/events?follow=1');
  slow.pause();
  const text = 'x'.repeat(2000);
  for (let i = 0; i < 5000; i++) fake.emitEvent('flood', null, text);
  await sleep(50);
  let read = '';
  for await (const chunk of slow.setEncoding('utf8')) {
    read += chunk;
    if (read.includes('events-lost')) break;
  }
  assert.match(read, /"events-lost".*\d+ events were lost: the reader is too slow/);
  await until(() => daemon.api.openStreams === 0);
});

test('a capture streams until the client goes, and then ends in the switch', async () => {
  const response = await open('/v1/ports/vm0/capture?snapLen=20');
  assert.equal(response.headers['content-type'], 'application/x-pcapng');
  let bytes = Buffer.alloc(0);
  for await (const chunk of response) {
    bytes = Buffer.concat([bytes, chunk as Buffer]);
    if (bytes.length > 500) break;
  }
  assert.equal(bytes.readUInt32LE(0), 0x0a0d0d0a);
  assert.equal(bytes.readUInt32LE(48 + 20), 20, 'captured length is the snap length');
  await until(() => fake.openCaptures === 0);
  assert.equal(daemon.api.openStreams, 0);
});

test('captures have a limit', async () => {
  const responses = await Promise.all(
    Array.from({ length: 16 }, () => open('/v1/ports/vm0/capture')),
  );
  assert.equal((await call('/v1/ports/vm0/capture')).json.error.code, 'ERR_VRING_API_BUSY');
  for (const response of responses) response.destroy();
  await until(() => fake.openCaptures === 0);
});

test('TCP serves what reads, to loopback names only', async () => {
  const port = Number(daemon.api.httpAddress?.split(':')[1]);
  const tcp = (path: string, options: Options = {}) => call(path, { port, ...options });
  assert.equal((await tcp('/v1/ports')).status, 200);
  assert.equal((await tcp('/metrics')).status, 200);
  assert.equal((await tcp('/v1/ports', { headers: { host: 'evil.example' } })).status, 403);
  for (const route of ROUTES.filter((r) => r.socketOnly)) {
    const path = route.path.replace('{name}', 'vm0');
    const answer = await tcp(path, { method: route.method });
    assert.equal(answer.json.error.code, 'ERR_VRING_API_SOCKET_ONLY', `${route.method} ${path}`);
  }
  assert.ok(ROUTES.every((route) => route.method === 'GET' || route.socketOnly));
});

test('metrics are valid exposition format with the counters of the switch', async () => {
  fake.frozen = true;
  const { text, headers } = await call('/metrics');
  fake.frozen = false;
  assert.match(headers['content-type']!, /^text\/plain; version=0.0.4/);
  const samples = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line === '' || line.startsWith('# HELP ') || line.startsWith('# TYPE ')) continue;
    const match = /^([a-z_]+(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})?) (\S+)$/.exec(line);
    assert.ok(match, line);
    assert.ok(!samples.has(match[1]!), `twice: ${line}`);
    samples.set(match[1]!, Number(match[2]));
  }
  const expected: Record<string, number> = {
    'vring_port_receive_frames_total{port="vm0"}': 1_000_000,
    'vring_port_receive_bytes_total{port="vm0"}': 64_000_000,
    'vring_port_transmit_frames_total{port="up"}': 500_000,
    'vring_port_transmit_bytes_total{port="up"}': 32_000_000,
    'vring_port_drops_total{port="vm0",direction="tx",reason="noBuffer"}': 1000,
    'vring_port_drops_total{port="vm0",direction="rx",reason="vlan"}': 3,
    'vring_port_faults_total{port="vm0"}': 0,
    'vring_port_counter_total{port="vm0",counter="learned"}': 2,
    'vring_port_state{port="vm0",state="up"}': 1,
    'vring_port_state{port="vm0",state="down"}': 0,
    'vring_port_sessions_total{port="vm0"}': 1,
    'vring_port_memory_bytes{port="vm0"}': 268435456,
    'vring_queue_kicks_total{port="vm0",queue="receiveq1"}': 7,
    'vring_queue_calls_total{port="vm0",queue="transmitq1"}': 5,
    'vring_queue_calls_suppressed_total{port="vm0",queue="transmitq1"}': 2,
    'vring_worker_sleeps_total{worker="0"}': 10,
    'vring_worker_cpu_seconds_total{worker="0"}': 0.25,
    'vring_mac_table_entries{port="vm0"}': 0,
  };
  for (const [name, value] of Object.entries(expected))
    assert.equal(samples.get(name), value, name);
});

test('scrapes side by side do not count twice', async () => {
  fake.frozen = true;
  const texts = await Promise.all(Array.from({ length: 8 }, () => call('/metrics')));
  fake.frozen = false;
  for (const { text } of texts) {
    assert.match(text, /^vring_port_receive_frames_total\{port="vm0"\} 1000000$/m);
  }
});

test('openapi.json describes every route, with resolvable references', async () => {
  const { json } = await call('/openapi.json');
  assert.equal(json.openapi, '3.1.0');
  for (const route of ROUTES) {
    const operation = json.paths[route.path][route.method.toLowerCase()];
    assert.equal(operation.operationId, route.id);
  }
  const references = JSON.stringify(json).matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g);
  let count = 0;
  for (const [, name] of references) {
    assert.ok(json.components.schemas[name!], name);
    count++;
  }
  assert.ok(count > 10);
  assert.ok(!JSON.stringify(json).includes('$defs'));
});

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 200 && !condition(); i++) await sleep(10);
  assert.ok(condition(), condition.toString());
}

const start = (path: string, mode = 0o660) =>
  SwitchDaemon.start(
    { ...buildConfig({ control: path }), control: { path, mode, owner: null } },
    (config) => FakeSwitch.start(config),
  );

test('the socket has its mode, its directory is made, and it goes at the end', async () => {
  const path = join(directory, 'made', 'deep', 's.sock');
  const one = await start(path, 0o600);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  await one.close();
  await one.close();
  assert.ok(!existsSync(path));
  assert.equal(statSync(control).mode & 0o777, 0o660);
});

test('a stale socket is replaced, one in use is refused and left alone', async () => {
  const path = join(directory, 'stale.sock');
  const script = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script, path]);
  assert.ok(statSync(path).isSocket());
  await (await start(path)).close();

  await assert.rejects(start(control), (error: VringError) => {
    assert.equal(error.code, 'ERR_VRING_SOCKET_IN_USE');
    assert.match(error.message, /is in use: a switch is running there; stop it, or give another/);
    return true;
  });
  assert.equal((await call('/healthz')).status, 200);

  const file = join(directory, 'file');
  writeFileSync(file, 'precious');
  await assert.rejects(start(file), { code: 'ERR_VRING_NOT_A_SOCKET' });
  assert.ok(existsSync(file));
});

test('a TCP address in use is refused, and the socket is gone again', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => other.once('listening', resolve));
  const { port } = other.address() as { port: number };
  const path = join(directory, 'tcp.sock');
  const config = buildConfig({ control: path, http: `127.0.0.1:${port}` });
  await assert.rejects(
    SwitchDaemon.start(config, (c) => FakeSwitch.start(c)),
    /EADDRINUSE: 127.0.0.1:\d+: in use by another process/,
  );
  assert.ok(!existsSync(path));
  other.close();
});

test('a switch that cannot start leaves no socket', async () => {
  const path = join(directory, 'fails.sock');
  const fails = SwitchDaemon.start(buildConfig({ control: path }), async () => {
    assert.equal((await call('/healthz', { socketPath: path })).status, 503);
    throw new Error('no such device');
  });
  await assert.rejects(fails, /no such device/);
  assert.ok(!existsSync(path));
});

test('close ends followers and captures', async () => {
  const path = join(directory, 'ends.sock');
  const one = await start(path);
  await one.control.addPort(daemon.config.ports[0]!);
  const streams = await Promise.all([
    open('/v1/events?follow=1', { socketPath: path }),
    open('/v1/ports/vm0/capture', { socketPath: path }),
  ]);
  const ends = streams.map(async (stream) => {
    for await (const _ of stream);
  });
  await one.close();
  await Promise.allSettled(ends);
  assert.equal((one.control as FakeSwitch).openCaptures, 0);
});

test('a directory without permission is explained', async () => {
  const locked = join(directory, 'locked');
  await (await start(join(locked, 's.sock'))).close();
  chmodSync(locked, 0o500);
  // Root may use every directory: somebody else tries then, who gets as far as this one.
  const root = process.geteuid?.() === 0;
  chmodSync(directory, 0o755);
  if (root) process.seteuid?.(65534);
  try {
    await assert.rejects(start(join(locked, 's.sock')), /EACCES.*no permission; run as root/);
  } finally {
    if (root) process.seteuid?.(0);
  }
});

test('readiness and events as text', async () => {
  assert.match(
    readinessLine(await daemon.readiness()),
    /^vring: ready: 2 ports, control socket \S+switch.sock, http:\/\/127.0.0.1:\d+$/,
  );
  const lines: string[] = [];
  const log = new EventLog((line) => lines.push(line), 2);
  const event = { kind: 'session', port: 'vm0', message: 'connected' };
  for (const at of ['00.1', '00.2', '00.3', '00.4', '01.0']) {
    log.add({ at: `2026-01-01T00:00:${at}Z`, ...event });
  }
  assert.deepEqual(lines, [
    '2026-01-01T00:00:00.1Z vm0: session: connected',
    '2026-01-01T00:00:00.2Z vm0: session: connected',
    '2026-01-01T00:00:01.0Z 2 more events, not shown',
    '2026-01-01T00:00:01.0Z vm0: session: connected',
  ]);
});
