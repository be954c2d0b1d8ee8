import { deepStrictEqual, ok, strictEqual } from 'node:assert';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { Socket } from 'node:net';
import { after, before, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { PrivateMemory } from '../memory/index.ts';
import {
  FRAME_BATCH_BYTES,
  FrameBatch,
  HEADER_SLOT_START,
  SWITCH_SCRATCH_BYTES,
  Switch,
} from '../switch/index.ts';
import { readCounters } from '../switch/index.ts';
import { arena } from '../sys/arena.ts';
import type { Fd } from '../sys/fd.ts';
import { addInterfaceAddress, openTap, setInterfaceUp, setTapOffloads } from '../sys/tap.ts';
import { enterNetns } from '../sys/thread.ts';
import { checksumAdd, checksumFinish, pseudoHeaderSum4 } from '../wire/ip.ts';
import { TAP_ACCEPTS, TAP_SCRATCH_BYTES, TapPlane } from './index.ts';

/** Real TAPs in network namespaces of this test's own: `near` is this process's, `far` another. */
const near = `vring-near-${process.pid}`;
const far = `vring-far-${process.pid}`;
const ip = (...args: string[]) => spawnSync('ip', args, { encoding: 'utf8' });
const skip = whyNot();
if (skip !== false) console.log(`SKIPPED, uplinks are not tested: ${skip}`);

function whyNot(): string | false {
  if (ip('netns', 'add', near).status !== 0) {
    return 'cannot make a network namespace (needs root and iproute2: apt-get install iproute2)';
  }
  try {
    enterNetns(`/run/netns/${near}`);
    openTap('probe%d', { vnetHdrBytes: 12 }).fd.close();
    return false;
  } catch (error) {
    ip('netns', 'del', near);
    return `no TAP here: ${(error as Error).message}`;
  }
}

before(() => {
  if (skip === false) ip('netns', 'add', far);
});

after(() => {
  if (skip !== false) return;
  ip('netns', 'del', near);
  ip('netns', 'del', far);
});

const NO_OFFLOADS = { csum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso: false };
const OFFLOADS = { csum: true, tso4: true, tso6: true, ecn: true, ufo: false, uso: false };

function openPlane(name: string, accepts: number): { fd: Fd; plane: TapPlane; name: string } {
  const { fd, name: actual } = openTap(name, { vnetHdrBytes: 12 });
  setTapOffloads(fd.number, accepts === 0 ? NO_OFFLOADS : OFFLOADS);
  const scratchAt = PrivateMemory.allocate(TAP_SCRATCH_BYTES).offset;
  const plane = new TapPlane({ fds: [fd.number], mtu: 1500, linkUp: true, scratchAt, accepts });
  return { fd, plane, name: actual };
}

/** The next frame for which `wanted` says yes; others of the kernel (IPv6 discovery) pass by. */
async function nextFrame(
  plane: TapPlane,
  batch: FrameBatch,
  wanted: (type: number) => boolean,
): Promise<{ bytes: Buffer; i: number }> {
  for (let round = 0; round < 20_000; round++) {
    const count = plane.receive(batch);
    for (let i = 0; i < count; i++) {
      const at = batch.headerAt[i];
      const bytes = Buffer.alloc(batch.frameLen[i]);
      bytes.set(batch.headers.subarray(at, at + batch.headerLen[i]));
      if (batch.segCount[i] > 0) {
        const from = batch.segOffset[batch.segFirst[i]];
        const to = from + batch.segLen[batch.segFirst[i]];
        bytes.set(arena().bytes.subarray(from, to), batch.headerLen[i]);
      }
      if (wanted(bytes.readUInt16BE(12))) return { bytes, i };
    }
    await turn();
  }
  throw new Error('the frame did not come');
}

/** One frame of up to 64 bytes as a batch to transmit. */
function batchOf(frame: Uint8Array, csum: { start: number; offset: number } | null): FrameBatch {
  const batch = new FrameBatch({ buffer: new ArrayBuffer(FRAME_BATCH_BYTES), at: 0 });
  batch.count = 1;
  batch.headers.set(frame, HEADER_SLOT_START);
  batch.headerAt[0] = HEADER_SLOT_START;
  batch.headerLen[0] = frame.length;
  batch.frameLen[0] = frame.length;
  if (csum !== null) {
    batch.offload[0] = 1;
    batch.csumStart[0] = csum.start;
    batch.csumOffset[0] = csum.offset;
  }
  return batch;
}

const FIRST = Int32Array.of(0);

test('datagrams of the kernel both ways, checksums offloaded', { skip }, async () => {
  const { fd, plane, name } = openPlane('vrtest%d', TAP_ACCEPTS);
  addInterfaceAddress(name, '10.77.0.1/24');
  setInterfaceUp(name, true);
  const socket = createSocket('udp4');
  try {
    socket.bind(7000, '10.77.0.1');
    await once(socket, 'listening');
    socket.send('hello out there', 7001, '10.77.0.2');
    const batch = new FrameBatch({ buffer: new ArrayBuffer(FRAME_BATCH_BYTES), at: 0 });
    const request = await nextFrame(plane, batch, (type) => type === 0x0806);
    const mac = Uint8Array.of(2, 0, 0, 0, 0, 2);
    const reply = Buffer.from(request.bytes.subarray(0, 42));
    reply.set(request.bytes.subarray(6, 12), 0);
    reply.set(mac, 6);
    reply[21] = 2;
    request.bytes.copy(reply, 32, 22, 32);
    reply.set([...mac, 10, 77, 0, 2], 22);
    strictEqual(plane.transmit(batchOf(reply, null), FIRST, 1), 1);

    const { bytes, i } = await nextFrame(plane, batch, (type) => type === 0x0800);
    strictEqual(batch.offload[i] & 1, 1, 'the kernel left the checksum to us');
    deepStrictEqual([batch.csumStart[i], batch.csumOffset[i]], [34, 6]);
    strictEqual(bytes.subarray(42).toString(), 'hello out there');

    // Back to where it came from; once with the checksum to do, once with a wrong one.
    const answer = Buffer.from(bytes);
    bytes.copy(answer, 0, 6, 12);
    bytes.copy(answer, 6, 0, 6);
    bytes.copy(answer, 26, 30, 34);
    bytes.copy(answer, 30, 26, 30);
    bytes.copy(answer, 34, 36, 38);
    bytes.copy(answer, 36, 34, 36);
    const pseudo = pseudoHeaderSum4(answer, 14, 17, answer.length - 34);
    answer.writeUInt16BE(~checksumFinish(pseudo) & 0xffff, 40);
    const received = once(socket, 'message');
    strictEqual(plane.transmit(batchOf(answer, { start: 34, offset: 6 }), FIRST, 1), 1);
    const [message] = (await received) as [Buffer];
    strictEqual(message.toString(), 'hello out there');
    ok(checksumFinish(checksumAdd(0, answer, 14, 20)) === 0);
  } finally {
    socket.close();
    fd.close();
  }
});

test('what the kernel does not take is dropped by name', { skip }, () => {
  const { fd, plane } = openPlane('vrtest%d', TAP_ACCEPTS);
  const frame = new Uint8Array(60);
  strictEqual(plane.transmit(batchOf(frame, null), FIRST, 1), 0);
  strictEqual(plane.counters.txDropDown, 1, 'the interface is down');
  strictEqual(
    plane.receive(new FrameBatch({ buffer: new ArrayBuffer(FRAME_BATCH_BYTES), at: 0 })),
    0,
  );
  plane.linkUp = false;
  ok(!plane.ready);
  fd.close();
});

const SINK = `
  const hash = require('crypto').createHash('sha256');
  require('net').createServer((socket) => {
    socket.on('data', (bytes) => hash.update(bytes));
    socket.on('end', () => socket.end(hash.digest('hex')));
  }).listen(7002, '10.78.0.2', () => console.log('ready'));
`;

test('TCP between two kernels through the switch, segmented by it', { skip }, async () => {
  const left = openPlane('vrleft%d', TAP_ACCEPTS);
  const right = openPlane('vrright%d', 0);
  ip('link', 'set', right.name, 'netns', far);
  ip('-n', far, 'addr', 'add', '10.78.0.2/24', 'dev', right.name);
  ip('-n', far, 'link', 'set', right.name, 'up');
  addInterfaceAddress(left.name, '10.78.0.1/24');
  setInterfaceUp(left.name, true);
  const { view, bytes } = arena();
  const scratchAt = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES).offset;
  const bridge = new Switch({ view, bytes, scratchAt });
  const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 10, reflect: false } as const;
  bridge.addPort(0, left.plane, settings);
  bridge.addPort(1, right.plane, settings);
  const run = ['netns', 'exec', far, process.execPath, '-e', SINK];
  const sink: ChildProcess = spawn('ip', run, { stdio: ['ignore', 'pipe', 'inherit'] });
  let done = false;
  const pump = (async () => {
    while (!done) {
      bridge.forwardBatch(0);
      bridge.forwardBatch(1);
      await turn();
    }
  })();
  const socket = new Socket();
  try {
    await once(sink.stdout as NodeJS.ReadableStream, 'data');
    const payload = Buffer.alloc(8 << 20, 'all of it, in order. ');
    socket.connect(7002, '10.78.0.2');
    socket.end(payload);
    const [digest] = (await once(socket, 'data')) as [Buffer];
    strictEqual(digest.toString(), createHash('sha256').update(payload).digest('hex'));
    const counters = readCounters(bridge.counters, 1);
    ok(counters.gsoSegmented > 10, 'the sender used TSO');
    ok(counters.gsoSegments > counters.gsoSegmented);
  } finally {
    done = true;
    await pump;
    socket.destroy();
    sink.kill();
    left.fd.close();
    right.fd.close();
  }
});
