import { deepStrictEqual, ok, strictEqual, throws } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeArena, FakePort } from '../switch/fake-port.ts';
import { SWITCH_SCRATCH_BYTES, Switch } from '../switch/index.ts';
import { CaptureStream, CaptureTap } from './index.ts';

function setup(options: { snapLen: number; ringBytes?: number }) {
  const arena = new FakeArena(1 << 22, SWITCH_SCRATCH_BYTES);
  const { view, bytes } = arena;
  const bridge = new Switch({ view, bytes, scratchAt: 0 });
  const ports = [new FakePort(arena), new FakePort(arena)];
  for (const [index, port] of ports.entries()) {
    const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 10, reflect: false } as const;
    bridge.addPort(index, port, settings);
  }
  let closed = 0;
  const stream = new CaptureStream({ interfaceName: 'vm0', onClose: () => closed++, ...options });
  bridge.setTap(0, new CaptureTap(stream.ring, arena));
  return { bridge, ports, stream, closed: () => closed };
}

/** An ARP request, or a reply; longer ones are padded with numbers. */
function arp(size: number, reply = false): { bytes: Uint8Array } {
  const bytes = Uint8Array.from({ length: size }, (_, i) => i & 0xff);
  const [a, b] = [2, 4].map((n) => [n, 0, 0, 0, 0, 1]);
  bytes.set([...(reply ? a : [255, 255, 255, 255, 255, 255]), ...(reply ? b : a), 8, 6]);
  bytes.set([0, 1, 8, 0, 6, 4, 0, reply ? 2 : 1], 14);
  bytes.set([...(reply ? b : a), 10, 0, 0, reply ? 2 : 1], 22);
  bytes.set([...(reply ? a : [0, 0, 0, 0, 0, 0]), 10, 0, 0, reply ? 1 : 2], 32);
  return { bytes };
}

async function drain(stream: CaptureStream): Promise<Buffer> {
  stream.close();
  const chunks: Uint8Array[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

type Block = { type: number; body: Buffer };

function blocksOf(file: Buffer): Block[] {
  const blocks: Block[] = [];
  for (let at = 0; at < file.length;) {
    const size = file.readUInt32LE(at + 4);
    strictEqual(size % 4, 0);
    strictEqual(file.readUInt32LE(at + size - 4), size);
    blocks.push({ type: file.readUInt32LE(at), body: file.subarray(at + 8, at + size - 4) });
    at += size;
  }
  return blocks;
}

test('frames of both directions, cut at snapLen, with times and statistics', async () => {
  const { bridge, ports, stream, closed } = setup({ snapLen: 100 });
  ports[0].outgoing.push(arp(60), arp(1514));
  bridge.forwardBatch(0);
  ports[1].outgoing.push(arp(61, true));
  bridge.forwardBatch(1);
  const [shb, idb, ...rest] = blocksOf(await drain(stream));
  strictEqual(shb.type, 0x0a0d0d0a);
  strictEqual(idb.type, 1);
  strictEqual(idb.body.readUInt32LE(4), 100);
  ok(idb.body.includes('vm0'));
  const statistics = rest.pop() as Block;
  strictEqual(statistics.type, 5);
  deepStrictEqual(
    rest.map(({ type }) => type),
    [6, 6, 6],
  );
  deepStrictEqual(
    rest.map(({ body }) => body.readUInt32LE(12)),
    [60, 100, 61],
  );
  deepStrictEqual(
    rest.map(({ body }) => body.readUInt32LE(16)),
    [60, 1514, 61],
  );
  const flags = rest.map(({ body }) => body.readUInt32LE(body.length - 8));
  deepStrictEqual(flags, [1, 1, 2]);
  deepStrictEqual(rest[1].body.subarray(20, 120), Buffer.from(arp(1514).bytes.subarray(0, 100)));
  const high = BigInt(rest[0].body.readUInt32LE(4));
  const time = (high << 32n) | BigInt(rest[0].body.readUInt32LE(8));
  ok(Math.abs(Number(time / 1_000_000n) - Date.now()) < 2000);
  strictEqual(closed(), 1);
});

test('a ring that is full loses frames, counts them, and goes on', async () => {
  const { bridge, ports, stream } = setup({ snapLen: 1000, ringBytes: 8192 });
  for (let round = 0; round < 3; round++) {
    for (let n = 0; n < 20; n++) ports[0].outgoing.push(arp(1000 + n));
    bridge.forwardBatch(0);
  }
  strictEqual(stream.lost, 60 - 8);
  const iterator = stream[Symbol.asyncIterator]();
  await iterator.next();
  strictEqual(blocksOf((await iterator.next()).value as Buffer).length, 8);
  // Around the end of the ring, many times.
  for (let n = 0; n < 200; n++) {
    const sent = arp(900 + n);
    ports[0].outgoing.push(sent);
    bridge.forwardBatch(0);
    const [block] = blocksOf((await iterator.next()).value as Buffer);
    const captured = block.body.subarray(20, 20 + Math.min(900 + n, 1000));
    deepStrictEqual(captured, Buffer.from(sent.bytes.subarray(0, 1000)));
  }
  await iterator.return(undefined);
  strictEqual(stream.lost, 52);
});

test('a reader that stops takes the tap off; nonsense is refused', async () => {
  const { stream, closed } = setup({ snapLen: 64 });
  for await (const _ of stream) break;
  strictEqual(closed(), 1);
  throws(() => setup({ snapLen: 0 }), { code: 'ERR_VRING_CONFIG' });
});

test('tshark reads it', async (t) => {
  if (spawnSync('tshark', ['-v']).status !== 0) {
    t.skip('tshark is missing: apt-get install tshark');
    return;
  }
  const { bridge, ports, stream } = setup({ snapLen: 2000 });
  ports[0].outgoing.push(arp(60));
  bridge.forwardBatch(0);
  ports[1].outgoing.push(arp(60, true));
  bridge.forwardBatch(1);
  const folder = mkdtempSync(join(tmpdir(), 'vring-capture-'));
  try {
    const path = join(folder, 'port.pcapng');
    writeFileSync(path, await drain(stream));
    const fields = ['arp.opcode', 'frame.interface_name', 'frame.packet_flags_direction'];
    const args = ['-n', '-r', path, '-T', 'fields', ...fields.flatMap((field) => ['-e', field])];
    const run = spawnSync('tshark', args, { encoding: 'utf8' });
    strictEqual(run.status, 0, run.stderr);
    const rows = run.stdout
      .trim()
      .split('\n')
      .map((row) => row.split('\t'));
    deepStrictEqual(
      rows.map(([opcode, name]) => [opcode, name]),
      [
        ['1', 'vm0'],
        ['2', 'vm0'],
      ],
    );
    deepStrictEqual(
      rows.map(([, , direction]) => Number(direction)),
      [1, 2],
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});
