/** What the host tests of vhost-vDPA share: frames that come back, memory that may be pinned. */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { DirtyPages, PAGE_BYTES } from '../../src/guest/dirty-pages.ts';
import { NO_OFFLOAD } from '../../src/guest/link.ts';
import type { NetGuest } from '../../src/guest/net-driver.ts';
import type { ShadowBackend } from '../../src/runtime/index.ts';
import { arena } from '../../src/sys/index.ts';
import { VHOST_F_LOG_ALL } from '../../src/wire/vhost-user.ts';
import { featureSet } from '../../src/wire/virtio.ts';
import { waitFor } from '../peers/scratch.ts';
import { run } from './inside.ts';

export const LOG_ALL = featureSet(VHOST_F_LOG_ALL);

/** Frames on their way: a device that finds no buffer drops. */
const WINDOW = 8;
const HEADER = 14;
/** An EtherType that nobody listens to: "local experimental". */
const ETHERTYPE = 0x88b5;

/** Sets RLIMIT_MEMLOCK of this process; `unlimited` as in ulimit. */
export async function limitPinning(bytes: number | 'unlimited'): Promise<void> {
  await run('prlimit', ['--pid', String(process.pid), `--memlock=${bytes}`]);
}

export function numberedFrame(number: number, destination: readonly number[]): Uint8Array {
  const frame = new Uint8Array(60 + ((number * 97) % 1400));
  frame.set(destination, 0);
  frame.set([2, 0, 0, 0, 0xee, 1], 6);
  const view = new DataView(frame.buffer);
  view.setUint16(12, ETHERTYPE);
  view.setUint32(HEADER, number);
  for (let i = HEADER + 4; i < frame.length; i++) frame[i] = (i * 31 + number) & 0xff;
  return frame;
}

/** Only ours: a kernel on the wire has frames of its own. */
export function isNumbered(frame: Uint8Array): boolean {
  return frame.length > HEADER && frame[12] === ETHERTYPE >> 8 && frame[13] === (ETHERTYPE & 0xff);
}

/** Sends `count` frames to `destination` and compares what comes back, byte by byte, in order. */
export async function loopFrames(
  guest: NetGuest,
  count: number,
  destination: readonly number[] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
): Promise<void> {
  let received = 0;
  let wrong = '';
  guest.onFrame = (frame) => {
    if (!isNumbered(frame)) return;
    const expected = numberedFrame(received, destination);
    if (Buffer.compare(frame, expected) !== 0) wrong ||= `frame ${received} came back changed`;
    received++;
  };
  for (let i = 0; i < count; i++) {
    await waitFor('an answer', 20_000, () => i - received < WINDOW);
    await waitFor('room', 20_000, () => guest.send(numberedFrame(i, destination), NO_OFFLOAD));
  }
  await waitFor(`${count} frames`, 20_000, () => received >= count);
  guest.onFrame = null;
  equal(wrong, '');
  equal(received, count);
}

/** Runs `work` with logging on, and holds the log against memory: every changed page is marked. */
export async function comparingLog(
  guest: NetGuest,
  shadow: ShadowBackend,
  work: () => Promise<void>,
): Promise<number> {
  const { memory } = guest;
  const log = new DirtyPages(memory);
  try {
    await shadow.dirtyLog.setLogBase(log.fd.number, log.sizeBytes);
    await shadow.setFeatures(guest.features | LOG_ALL);
    for (const queue of guest.queues) {
      const { descUva, availUva, usedUva } = queue.vring(0);
      const addresses = { descUva, availUva, usedUva };
      await shadow.setVringAddr(queue.index, addresses, BigInt(queue.usedGpa));
    }
    const before = arena().bytes.slice(memory.offset, memory.offset + memory.sizeBytes);
    await work();
    const marked = new Set(log.take());
    const drivers = driverPages(guest);
    const missing = changed(before, memory.offset).filter((page) => !marked.has(page));
    deepEqual(
      missing.filter((page) => !drivers.has(page)),
      [],
    );
    await shadow.setFeatures(guest.features);
    return marked.size;
  } finally {
    log.close();
  }
}

function changed(before: Uint8Array, offset: number): number[] {
  const pages: number[] = [];
  for (let at = 0; at < before.length; at += PAGE_BYTES) {
    const now = arena().bytes.subarray(offset + at, offset + at + PAGE_BYTES);
    if (Buffer.compare(now, before.subarray(at, at + PAGE_BYTES)) !== 0)
      pages.push(at / PAGE_BYTES);
  }
  return pages;
}

/** Pages that only the driver writes: descriptors and avail ring, tables, what it sends. */
function driverPages(guest: NetGuest): Set<number> {
  const pages = new Set<number>();
  for (const queue of guest.queues) {
    ok(queue.ring.packed === 0, 'split rings only');
    const [start, end] = queue.driverBytes;
    const used = queue.ring.used.byteOffset - guest.memory.offset;
    const usedEnd = used + queue.ring.usedCells.byteLength;
    for (let at = start; at < end; at += PAGE_BYTES) {
      if (at + PAGE_BYTES <= used || at >= usedEnd) pages.add(at / PAGE_BYTES);
    }
  }
  return pages;
}
