/**
 * Both sides against conversations that were honest before bytes of them were changed, left out or
 * sent twice: whatever comes, everything ends, nothing is left, and the next one is served.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import { NullLayer } from '../layer/null-layer.ts';
import { NbdConnection } from './client-connection.ts';
import { NbdExport, openNbdLayer, parseNbdUri } from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-nbd-mutations-'));
after(() => rmSync(folder, { recursive: true }));
const ROUNDS = 100;
const DISK_BYTES = 2 ** 20;

function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Mostly in the handshake and the first headers: payload says nothing to anybody. */
function mutated(bytes: Buffer, next: (below: number) => number): Buffer {
  let result = Buffer.from(bytes);
  for (let count = 1 + next(3); count > 0; count--) {
    const at = next(Math.min(result.length, 20 + next(result.length)));
    switch (next(5)) {
      case 0:
        result[at] = next(256);
        break;
      case 1:
        result[at]! ^= 1 << next(8);
        break;
      case 2:
        result = result.subarray(0, at + 1);
        break;
      case 3:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1 + next(16))]);
        break;
      default:
        result = Buffer.concat([result.subarray(0, at + 1), result.subarray(next(at + 1))]);
    }
    if (result.length === 0) return Buffer.of(0);
  }
  return result;
}

/** What the server said after the client had said so many bytes. */
type Said = { readonly afterBytes: number; readonly bytes: Buffer };
type Recording = { readonly client: Buffer; readonly server: readonly Said[] };

/** What both sides say while our client uses our server. */
async function record(server: string, path: string): Promise<Recording> {
  const sent: Buffer[] = [];
  const said: Said[] = [];
  let afterBytes = 0;
  const proxy = createServer((client) => {
    const upstream = connect(server);
    client.on('data', (bytes: Buffer) => {
      sent.push(bytes);
      afterBytes += bytes.length;
      upstream.write(bytes);
    });
    upstream.on('data', (bytes: Buffer) => {
      said.push({ afterBytes, bytes });
      client.write(bytes);
    });
    client.on('close', () => upstream.destroy());
  });
  proxy.listen(path);
  await use(`nbd+unix:///?socket=${path}`, 5000);
  proxy.close();
  return { client: Buffer.concat(sent), server: said };
}

/** Says what the server said, one part of it changed. */
function replay(socket: Socket, said: readonly Said[], next: (below: number) => number): void {
  const changed = next(said.length);
  const parts = said.map((part, i) =>
    i === changed ? { ...part, bytes: mutated(part.bytes, next) } : part,
  );
  let heardBytes = 0;
  const say = (): void => {
    while (parts.length > 0 && heardBytes >= parts[0]!.afterBytes) {
      socket.write(parts.shift()!.bytes);
    }
  };
  socket.on('data', (bytes: Buffer) => {
    heardBytes += bytes.length;
    say();
  });
  say();
}

/** A little of everything, each waited for. */
async function use(uri: string, timeoutMs: number): Promise<void> {
  const connection = await NbdConnection.open({ address: parseNbdUri(uri), timeoutMs }, () => {});
  const late = setTimeout(() => connection.drop(new Error('late')), timeoutMs);
  try {
    const payload = Buffer.alloc(512);
    const range = { flags: 0, at: 512, sizeBytes: 512 };
    await connection.request({ ...range, type: 0, into: payload });
    await connection.request({ ...range, type: 1, flags: 1, from: payload });
    await connection.request({ ...range, type: 7 });
    await connection.request({ ...range, type: 6 });
    await connection.request({ ...range, type: 4 });
    await connection.request({ flags: 0, at: 0, sizeBytes: 0, type: 3 });
  } finally {
    clearTimeout(late);
    await connection.close();
  }
}

async function setUp(t: TestContext): Promise<{ server: NbdExport; path: string }> {
  const path = join(folder, 'server');
  const server = await NbdExport.start(new NullLayer(DISK_BYTES, false), { at: { socket: path } });
  t.after(() => server.close());
  return { server, path };
}

test('a server survives what was once a client', async (t) => {
  const seed = Date.now() >>> 0;
  t.diagnostic(`seed ${seed}`);
  const next = random(seed);
  const { server, path } = await setUp(t);
  const { client } = await record(path, join(folder, 'p1'));
  for (let round = 0; round < ROUNDS; round++) {
    const socket = connect(path);
    socket.on('error', () => {});
    socket.resume();
    socket.end(mutated(client, next));
    await new Promise((done) => socket.once('close', done));
  }
  const disk = await openNbdLayer({ uri: server.status().uri });
  await disk.read(0, Buffer.alloc(512));
  await disk.close();
  while (server.status().connections > 0) await new Promise((done) => setTimeout(done, 5));
  const { requests, badClients } = server.status();
  assert.ok(requests > ROUNDS, `${requests} requests came through, seed ${seed}`);
  assert.ok(badClients > ROUNDS / 10, `${badClients} bad clients, seed ${seed}`);
});

test('a client survives what was once a server', async (t) => {
  const seed = Date.now() >>> 0;
  t.diagnostic(`seed ${seed}`);
  const next = random(seed);
  const { path } = await setUp(t);
  const recording = (await record(path, join(folder, 'p2'))).server;
  const evil = join(folder, 'evil');
  const open = new Set<Socket>();
  const liar = createServer((socket) => {
    open.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => open.delete(socket));
    replay(socket, recording, next);
  });
  liar.listen(evil);
  t.after(() => liar.close());
  const ends: Record<string, number> = {};
  for (let round = 0; round < ROUNDS; round++) {
    const end = await use(`nbd+unix:///?socket=${evil}`, 100).then(
      () => 'fine',
      (error: { code?: string; message: string }) => error.code ?? error.message,
    );
    ends[end] = (ends[end] ?? 0) + 1;
    for (const socket of open) socket.destroy();
  }
  t.diagnostic(JSON.stringify(ends));
  const { ERR_VRING_NBD_PROTOCOL: wrong = 0 } = ends;
  assert.ok(wrong > ROUNDS / 10, `${JSON.stringify(ends)}, seed ${seed}`);
  const known = /^(fine|late|ERR_VRING_NBD_\w+|ERR_VRING_DISK_IO)$/;
  for (const end of Object.keys(ends)) assert.match(end, known, `seed ${seed}`);
});
