/** A veth pair in a network namespace of a test's own, and frames to send over it. */
import { spawnSync } from 'node:child_process';
import { PrivateMemory } from '../memory/index.ts';
import {
  FRAME_BATCH_BYTES,
  FrameBatch,
  HEADER_SLOT_BYTES,
  HEADER_SLOT_START,
} from '../switch/index.ts';
import { arena, enterNetns, interfaceState } from '../sys/index.ts';
import type { UplinkPlane } from './uplink-plane.ts';

export const ip = (...args: string[]) => spawnSync('ip', args, { encoding: 'utf8' });

/**
 * Puts this process into a namespace with `va` and `vb`; a text is why that cannot be, and what
 * helps. With VRING_REQUIRE_PEERS=1 (CI) it must be.
 * @throws Error.
 */
export function enterVeth(netns: string, mtu: number): string | false {
  const problem = makeVeth(netns, mtu);
  if (problem !== false && process.env['VRING_REQUIRE_PEERS'] === '1') throw new Error(problem);
  return problem;
}

function makeVeth(netns: string, mtu: number): string | false {
  if (ip('netns', 'add', netns).status !== 0) {
    return 'cannot make a network namespace (needs root and iproute2: apt-get install iproute2)';
  }
  try {
    enterNetns(`/run/netns/${netns}`);
    const made = ip('link', 'add', 'va', 'type', 'veth', 'peer', 'name', 'vb');
    if (made.status !== 0) throw new Error(`no veth here: ${made.stderr}`);
    // Nobody but the test says anything: no IPv6, no addresses, also on what it makes later.
    for (const name of ['default', 'va', 'vb'])
      spawnSync('sh', ['-c', `echo 1 > /proc/sys/net/ipv6/conf/${name}/disable_ipv6`]);
    for (const name of ['va', 'vb']) ip('link', 'set', name, 'mtu', String(mtu), 'up');
    return false;
  } catch (error) {
    ip('netns', 'del', netns);
    return (error as Error).message;
  }
}

export function indexOf(name: string): number {
  return interfaceState(name)!.index;
}

export function newBatch(): FrameBatch {
  const at = PrivateMemory.allocate(FRAME_BATCH_BYTES).offset;
  return new FrameBatch({ buffer: arena().buffer, at });
}

export const LIST = Int32Array.from({ length: 64 }, (_, i) => i);

/** Frames for `transmit`: the header copy, and the rest in `segments` pieces of arena memory. */
export class Sender {
  readonly batch = newBatch();
  readonly #memory = PrivateMemory.allocate(64 * 65536);

  fill(frames: readonly Uint8Array[], segments = 1): FrameBatch {
    const { batch } = this;
    const { bytes } = arena();
    batch.count = frames.length;
    batch.segments = 0;
    for (const [i, frame] of frames.entries()) {
      const at = i * HEADER_SLOT_BYTES + HEADER_SLOT_START;
      const headerLen = Math.min(64, frame.length);
      batch.headers.set(frame.subarray(0, headerLen), at);
      batch.headerAt[i] = at;
      batch.headerLen[i] = headerLen;
      batch.frameLen[i] = frame.length;
      batch.offload[i] = 0;
      batch.gsoType[i] = 0;
      batch.segFirst[i] = batch.segments;
      const rest = frame.subarray(headerLen);
      const from = this.#memory.offset + i * 65536;
      bytes.set(rest, from);
      const each = Math.ceil(rest.length / segments);
      for (let done = 0; done < rest.length; done += each) {
        batch.segOffset[batch.segments] = from + done;
        batch.segLen[batch.segments++] = Math.min(each, rest.length - done);
      }
      batch.segCount[i] = batch.segments - batch.segFirst[i];
    }
    return batch;
  }

  send(plane: UplinkPlane, frames: readonly Uint8Array[], segments = 1): number {
    let delivered = 0;
    for (let from = 0; from < frames.length; from += 64) {
      const part = frames.slice(from, from + 64);
      delivered += plane.transmit(this.fill(part, segments), LIST, part.length);
      plane.flush();
    }
    return delivered;
  }
}

/** A frame that tells its number and whether it is whole. */
export function makeFrame(number: number, lenBytes: number): Buffer {
  const frame = Buffer.alloc(lenBytes);
  for (let i = 14; i < lenBytes; i++) frame[i] = (number * 31 + i * 7) & 0xff;
  frame.set([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
  return frame;
}

/** Frames of `flows` UDP flows in turn, `each` of every one, numbered within their flow. */
export function makeFlows(flows: number, each: number): Buffer[] {
  return Array.from({ length: flows * each }, (_, i) => {
    const frame = makeFrame(i, 60);
    frame.set([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0], 12); // IPv4 with UDP
    frame.set([10, 0, 0, 1, 10, 0, 0, 2], 26);
    frame.writeUInt16BE(1000 + (i % flows), 34);
    frame.writeUInt16BE(4000, 36);
    frame.writeUInt16BE(Math.trunc(i / flows), 42);
    return frame;
  });
}

/** Numbers of the frames of each flow, by its port, in the order in which they are in `frames`. */
export function numbersOf(frames: readonly Buffer[]): Map<number, number[]> {
  const numbers = Map.groupBy(frames, (frame) => frame.readUInt16BE(34));
  return new Map(
    [...numbers].map(([port, own]) => [port, own.map((frame) => frame.readUInt16BE(42))]),
  );
}

/** Frame `i` of a batch as bytes. */
export function frameOf(batch: FrameBatch, i: number): Buffer {
  const bytes = Buffer.alloc(batch.frameLen[i]);
  const at = batch.headerAt[i];
  bytes.set(batch.headers.subarray(at, at + batch.headerLen[i]));
  let to = batch.headerLen[i];
  for (let s = batch.segFirst[i]; s < batch.segFirst[i] + batch.segCount[i]; s++) {
    const from = batch.segOffset[s];
    bytes.set(arena().bytes.subarray(from, from + batch.segLen[s]), to);
    to += batch.segLen[s];
  }
  return bytes;
}

/** Takes frames until there are `count`, or none comes for `quietMs`. */
export function takeFrames(
  plane: UplinkPlane,
  batch: FrameBatch,
  count: number,
  quietMs = 500,
): Buffer[] {
  const frames: Buffer[] = [];
  let lastMs = performance.now();
  while (frames.length < count && performance.now() - lastMs < quietMs) {
    const got = plane.receive(batch);
    for (let i = 0; i < got; i++) frames.push(frameOf(batch, i));
    if (got === 0) continue;
    plane.release(batch);
    plane.flush();
    lastMs = performance.now();
  }
  return frames;
}
