/** Our client on our server, held against a byte array: also when the connection is cut all the time. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { type Extent, LayerError } from '../layer/layer.ts';
import { MemoryLayer } from '../layer/memory-layer.ts';
import { NbdExport, type NbdExportOptions, openNbdLayer, parseNbdUri } from './index.ts';
import { NbdConnection } from './client-connection.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-nbd-'));
after(() => rmSync(folder, { recursive: true }));
let sockets = 0;
const nextSocket = (): string => join(folder, `s${sockets++}`);

function memoryLayer(sizeBytes: number, readOnly = false): MemoryLayer {
  const memory = PrivateMemory.allocate(sizeBytes);
  const { offset, handle } = memory;
  const layer = new MemoryLayer({ kind: 'memory', offset, handle, sizeBytes, readOnly });
  memory.close(); // the layer holds it
  return layer;
}

async function exported(
  t: TestContext,
  layer: MemoryLayer,
  options: Partial<NbdExportOptions> = {},
): Promise<{ uri: string; socket: string; server: NbdExport }> {
  const socket = nextSocket();
  const server = await NbdExport.start(layer, { at: { socket }, ...options });
  t.after(async () => {
    await server.close();
    await layer.close();
  });
  return { uri: server.status().uri, socket, server };
}

function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Forwards connections, and cuts them when told to. */
class Cutter {
  readonly path = nextSocket();
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(target: string) {
    this.#server = createServer((client) => {
      const server = connect(target);
      for (const socket of [client, server]) {
        this.#sockets.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          this.#sockets.delete(socket);
          client.destroy();
          server.destroy();
        });
      }
      client.pipe(server).pipe(client);
    });
    this.#server.listen(this.path);
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.#server.close();
    this.cut();
  }
}

const DISK_BYTES = 8 * 2 ** 20;

for (const isCut of [false, true]) {
  test(`random requests, several at once${isCut ? ', on a connection that is cut' : ''}`, async (t) => {
    const { socket } = await exported(t, memoryLayer(DISK_BYTES));
    const cutter = new Cutter(socket);
    t.after(() => cutter.close());
    const disk = await openNbdLayer({ uri: `nbd+unix:///?socket=${cutter.path}` });
    t.after(() => disk.close());
    assert.equal(disk.sizeBytes, DISK_BYTES);
    const model = Buffer.alloc(DISK_BYTES);
    const seed = Date.now() >>> 0;
    t.diagnostic(`seed ${seed}`);
    const next = random(seed);
    // Further and further apart: a large request gets through in the end on a busy machine, too.
    let cutMs = 10;
    const cut = (): void => {
      cutter.cut();
      cutMs += 5;
      timer = setTimeout(cut, cutMs);
    };
    let timer = isCut ? setTimeout(cut, cutMs) : undefined;
    // Eight workers, each on a part of its own: no two requests overlap, all are under way at once.
    const part = DISK_BYTES / 8;
    await Promise.all(
      Array.from({ length: 8 }, async (_, worker) => {
        for (let round = 0; round < (isCut ? 200 : 100); round++) {
          const size = 512 * (1 + next(next(8) === 0 ? part / 512 : 64));
          const at = worker * part + 512 * next((part - size) / 512 + 1);
          const fua = next(4) === 0;
          switch (next(5)) {
            case 0:
            case 1: {
              const bytes = Buffer.alloc(size, next(256));
              model.set(bytes, at);
              await disk.write(at, bytes, fua);
              break;
            }
            case 2:
              model.fill(0, at, at + size);
              await disk.zero(at, size, { fua, unmap: next(2) === 0 });
              break;
            case 3:
              await disk.flush();
              break;
            default: {
              const bytes = Buffer.alloc(size);
              await disk.read(at, bytes);
              assert.ok(bytes.equals(model.subarray(at, at + size)), `seed ${seed}: at ${at}`);
            }
          }
        }
      }),
    );
    clearTimeout(timer);
    const all = Buffer.alloc(DISK_BYTES);
    await disk.read(0, all);
    assert.ok(all.equals(model), `seed ${seed}`);
    const { nbdReconnects } = disk.counters();
    assert.ok(isCut ? nbdReconnects! > 3 : nbdReconnects === 0, `${nbdReconnects} reconnects`);
  });
}

/** Forgets what was not flushed when it is told to, as a machine does that loses its power. */
class ForgetfulLayer extends MemoryLayer {
  #unflushed: { at: number; old: Buffer }[] = [];

  override async write(at: number, from: Uint8Array, fua = false): Promise<void> {
    const old = Buffer.alloc(from.length);
    await this.read(at, old);
    if (!fua) this.#unflushed.push({ at, old });
    await super.write(at, from);
  }

  override async flush(): Promise<void> {
    this.#unflushed = [];
  }

  async forget(): Promise<void> {
    for (const { at, old } of this.#unflushed.toReversed()) await super.write(at, old);
    this.#unflushed = [];
  }
}

test('writes that a server had acknowledged and lost are written again', async (t) => {
  const memory = PrivateMemory.allocate(2 ** 20);
  const { offset, handle } = memory;
  const spec = { kind: 'memory', offset, handle, sizeBytes: 2 ** 20, readOnly: false } as const;
  const layer = new ForgetfulLayer(spec);
  memory.close();
  const { uri, socket, server } = await exported(t, layer);
  const disk = await openNbdLayer({ uri });
  t.after(() => disk.close());
  await disk.write(0, Buffer.alloc(4096, 1), false);
  await disk.flush();
  await disk.write(0, Buffer.alloc(4096, 2), false);
  await disk.write(2048, Buffer.alloc(4096, 3), false);
  await disk.write(2048, Buffer.alloc(512, 4), true); // durable, over one that is not
  assert.equal(disk.counters()['nbdUnflushedBytes'], 4096 + 4096 + 512);
  await server.close();
  await layer.forget();
  const lost = Buffer.alloc(512);
  await layer.read(1024, lost);
  assert.equal(lost[0], 1, 'the server did forget');
  const again = await NbdExport.start(layer, { at: { socket } });
  t.after(() => again.close());
  await disk.flush();
  assert.equal(disk.counters()['nbdReplayedWrites'], 3);
  assert.equal(disk.counters()['nbdUnflushedBytes'], 0);
  await layer.forget();
  const bytes = Buffer.alloc(8192);
  await disk.read(0, bytes);
  const kinds = [0, 2047, 2048, 2559, 2560, 6143, 6144].map((at) => bytes[at]);
  assert.deepEqual(kinds, [2, 2, 4, 4, 3, 3, 0]);
});

test('who writes much without a flush is flushed: memory is bounded', async (t) => {
  const { uri, server } = await exported(t, memoryLayer(DISK_BYTES));
  const disk = await openNbdLayer({ uri });
  t.after(() => disk.close());
  const bytes = Buffer.alloc(2 ** 20, 7);
  let most = 0;
  for (let round = 0; round < 100; round++) {
    await disk.write((round % 8) * 2 ** 20, bytes, false);
    most = Math.max(most, disk.counters()['nbdUnflushedBytes']!);
  }
  assert.ok(most >= 16 * 2 ** 20 && most <= 40 * 2 ** 20, `${most} bytes were kept`);
  assert.ok(server.status().requests >= 102, 'flushes came beside the 100 writes');
});

test('no server within the time: ETIMEDOUT that names disk and offset; a flush fails for good', async (t) => {
  const layer = memoryLayer(2 ** 20);
  const { uri, socket, server } = await exported(t, layer);
  const disk = await openNbdLayer({ uri, timeoutSeconds: 1 });
  t.after(() => disk.close());
  await server.close();
  const isLate = (error: LayerError): boolean =>
    error.errno === 110 && error.message.startsWith(`${uri}: read at byte 4096: no answer`);
  const start = performance.now();
  await assert.rejects(disk.read(4096, Buffer.alloc(512)), isLate);
  assert.ok(performance.now() - start < 5000);
  await assert.rejects(disk.flush(), { errno: 110 });
  const soon = performance.now();
  await assert.rejects(disk.read(4096, Buffer.alloc(512)), isLate);
  assert.ok(performance.now() - soon < 900, 'a server that is gone is not waited for again');
  const again = await NbdExport.start(layer, { at: { socket } });
  t.after(() => again.close());
  while (disk.counters()['nbdConnected'] === 0) await new Promise((done) => setTimeout(done, 20));
  await disk.read(4096, Buffer.alloc(512));
  await assert.rejects(disk.flush(), { errno: 110 }, 'sticky');
});

test('an export that comes back with another size is refused', async (t) => {
  const { uri, socket, server } = await exported(t, memoryLayer(2 ** 20));
  const disk = await openNbdLayer({ uri, timeoutSeconds: 0.5 });
  t.after(() => disk.close());
  await server.close();
  const other = memoryLayer(2 ** 21);
  const again = await NbdExport.start(other, { at: { socket } });
  t.after(() => again.close());
  await assert.rejects(disk.read(0, Buffer.alloc(512)), /came back with 2097152 bytes/);
});

test('read-only both ways; extents; names', async (t) => {
  const layer = memoryLayer(DISK_BYTES);
  const extents: Extent[] = [
    { at: 0, sizeBytes: 65536, kind: 'data' },
    { at: 65536, sizeBytes: 65536, kind: 'zero' },
    { at: 131072, sizeBytes: DISK_BYTES - 131072, kind: 'hole' },
  ];
  layer.extents = async (at, sizeBytes) =>
    extents
      .map((e) => {
        const start = Math.max(e.at, at);
        const end = Math.min(e.at + e.sizeBytes, at + sizeBytes);
        return { at: start, sizeBytes: end - start, kind: e.kind };
      })
      .filter((e) => e.sizeBytes > 0);
  const { uri, socket, server } = await exported(t, layer, { readOnly: true, name: 'a b/ü' });
  const disk = await openNbdLayer({ uri });
  t.after(() => disk.close());
  assert.equal(disk.readOnly, true);
  assert.deepEqual(await disk.extents(0, DISK_BYTES), extents);
  assert.deepEqual(await disk.extents(66048, 512), [{ at: 66048, sizeBytes: 512, kind: 'zero' }]);
  await assert.rejects(disk.write(0, Buffer.alloc(512), false), { errno: 30 });
  await assert.rejects(disk.zero(0, 512, { unmap: true, fua: false }), { errno: 30 });
  // Who asks all the same is told the same by the server.
  const address = parseNbdUri(uri);
  const raw = await NbdConnection.open({ address, timeoutMs: 1000 }, () => {});
  const command = { type: 1, flags: 0, at: 0, sizeBytes: 512, from: Buffer.alloc(512) };
  await assert.rejects(raw.request(command), { errno: 30 });
  await assert.rejects(
    raw.request({ ...command, type: 0, at: DISK_BYTES, into: Buffer.alloc(512) }),
    {
      errno: 22,
    },
  );
  await raw.close();
  const unknown = openNbdLayer({ uri: `nbd+unix:///other?socket=${socket}` });
  await assert.rejects(unknown, { code: 'ERR_VRING_NBD_REFUSED', message: /no export "other"/ });
  await assert.rejects(openNbdLayer({ uri: `nbds+unix:///?socket=${socket}` }), /no TLS for nbds/);
  assert.equal(server.status().failedRequests, 2);
});

test('connections are limited, TCP is possible, the socket file goes away', async (t) => {
  const layer = memoryLayer(2 ** 20);
  const at = { host: '127.0.0.1', port: 0 };
  const { uri, server } = await exported(t, layer, { at, maxConnections: 1 });
  assert.match(uri, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  const disk = await openNbdLayer({ uri });
  await assert.rejects(openNbdLayer({ uri }), { code: 'ERR_VRING_NBD_CLOSED' });
  assert.equal(server.status().refusedConnections, 1);
  await disk.close();
  await server.close();
  await assert.rejects(openNbdLayer({ uri }), /cannot connect.*ECONNREFUSED/);
});

test('URIs', () => {
  assert.deepEqual(parseNbdUri('nbd://h/x').at, { host: 'h', port: 10809 });
  assert.deepEqual(parseNbdUri('nbd://[::1]:5/').at, { host: '::1', port: 5 });
  const tls = parseNbdUri('nbds+unix:///a%20b?socket=/s&tls-hostname=h&tls-certificates=/c');
  assert.equal(tls.exportName, 'a b');
  assert.deepEqual(tls.at, { path: '/s' });
  assert.deepEqual(tls.tls, { hostname: 'h', certificates: '/c' });
  for (const [uri, problem] of [
    ['http://h', /expected is nbd:/],
    ['nbd+unix:///x', /needs \?socket=PATH/],
    ['nbd+unix://h/x?socket=/s', /has a host/],
    ['nbd://h/?socket=/s', /nbd\+unix/],
    ['nbd://u:p@h/', /no users/],
    ['nbd://h/?timeout=3', /parameter timeout is unknown/],
    ['nbd://h/%zz', /%/],
    ['nbd://h:99999/', /no URI/],
  ] as const) {
    assert.throws(() => parseNbdUri(uri), { code: 'ERR_VRING_CONFIG', message: problem }, uri);
  }
});
