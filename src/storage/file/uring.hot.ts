/**
 * Entries into an io_uring, and completions out of it: linux/io_uring.h. Entries are read by the
 * kernel within `enterUring`, which orders them; the indices of both rings are atomic.
 */
import type { IoBatch } from '../io-batch.ts';
import type { Uring } from './uring.ts';

const OP_READV = 1; //     IORING_OP_*
const OP_WRITEV = 2;
const OP_FSYNC = 3;
const OP_FALLOCATE = 17;
const OP_READ = 22;
const OP_WRITE = 23;
const DATASYNC = 1; //     IORING_FSYNC_DATASYNC
const NEWS = 6; //         IORING_SQ_CQ_OVERFLOW, IORING_SQ_TASKRUN

const SLOTS_MASK = 255; // URING_SLOTS - 1
const SEGMENTS = 256; //   URING_SEGMENTS
const SQE_WORDS = 16;
const VECTOR_WORDS = 4;
const UNIT = 1 / 4294967296;

/** The segments of a row become the vectors of a slot. */
export function writeVectors(u: Uring, batch: IoBatch, row: number, slot: number): void {
  const { vectors, arenaAddress } = u;
  const { segOffset, segLen } = batch;
  const first = batch.segFirst[row]!;
  const count = batch.segCount[row]!;
  let at = slot * SEGMENTS * VECTOR_WORDS;
  for (let s = first; s < first + count; s++) {
    const address = arenaAddress + segOffset[s]!;
    vectors[at] = address | 0;
    vectors[at + 1] = (address * UNIT) | 0;
    vectors[at + 2] = segLen[s]!;
    vectors[at + 3] = 0;
    at += VECTOR_WORDS;
  }
  u.vecFirst[slot] = slot * SEGMENTS;
  u.vecCount[slot] = count;
  u.position[slot] = batch.at[row]!;
  u.left[slot] = batch.size[row]!;
}

/** What is left of a slot's transfer. */
export function pushTransfer(u: Uring, slot: number): void {
  const { sqes, vectors } = u;
  const at = (u.tail & SLOTS_MASK) * SQE_WORDS;
  const first = u.vecFirst[slot]!;
  const count = u.vecCount[slot]!;
  const isWrite = u.isWrite[slot]!;
  const position = u.position[slot]!;
  sqes[at + 1] = u.fd[slot]!;
  sqes[at + 2] = position | 0;
  sqes[at + 3] = (position * UNIT) | 0;
  if (count === 1) {
    const vector = first * VECTOR_WORDS;
    sqes[at] = isWrite === 1 ? OP_WRITE : OP_READ;
    sqes[at + 4] = vectors[vector]!;
    sqes[at + 5] = vectors[vector + 1]!;
    sqes[at + 6] = vectors[vector + 2]!;
  } else {
    const address = u.vectorsAddress + first * 16;
    sqes[at] = isWrite === 1 ? OP_WRITEV : OP_READV;
    sqes[at + 4] = address | 0;
    sqes[at + 5] = (address * UNIT) | 0;
    sqes[at + 6] = count;
  }
  sqes[at + 7] = u.rwFlags[slot]!;
  endEntry(u, at, slot);
}

/** Takes `moved` bytes off what is left of a slot's transfer; not all of it. */
export function skipMoved(u: Uring, slot: number, moved: number): void {
  const { vectors } = u;
  let first = u.vecFirst[slot]!;
  let count = u.vecCount[slot]!;
  let rest = moved;
  while (rest > 0 && rest >= vectors[first * VECTOR_WORDS + 2]!) {
    rest -= vectors[first * VECTOR_WORDS + 2]!;
    first++;
    count--;
  }
  const at = first * VECTOR_WORDS;
  const address = (vectors[at]! >>> 0) + vectors[at + 1]! * 4294967296 + rest;
  vectors[at] = address | 0;
  vectors[at + 1] = (address * UNIT) | 0;
  vectors[at + 2] -= rest;
  u.vecFirst[slot] = first;
  u.vecCount[slot] = count;
  u.position[slot] += moved;
  u.left[slot] -= moved;
}

export function pushSync(u: Uring, slot: number): void {
  const { sqes } = u;
  const at = (u.tail & SLOTS_MASK) * SQE_WORDS;
  sqes[at] = OP_FSYNC;
  sqes[at + 1] = u.fd[slot]!;
  for (let word = 2; word < 7; word++) sqes[at + word] = 0;
  sqes[at + 7] = DATASYNC;
  endEntry(u, at, slot);
}

/** `fallocate` of what is left of a slot: the length is where others have an address. */
export function pushAllocate(u: Uring, slot: number, mode: number): void {
  const { sqes } = u;
  const at = (u.tail & SLOTS_MASK) * SQE_WORDS;
  const position = u.position[slot]!;
  const left = u.left[slot]!;
  sqes[at] = OP_FALLOCATE;
  sqes[at + 1] = u.fd[slot]!;
  sqes[at + 2] = position | 0;
  sqes[at + 3] = (position * UNIT) | 0;
  sqes[at + 4] = left | 0;
  sqes[at + 5] = (left * UNIT) | 0;
  sqes[at + 6] = mode;
  sqes[at + 7] = 0;
  endEntry(u, at, slot);
}

function endEntry(u: Uring, at: number, slot: number): void {
  const { sqes } = u;
  sqes[at + 8] = slot; // user_data; what follows is 0 from the start, and nobody writes it
  u.tail = (u.tail + 1) | 0;
  u.unsubmitted++;
}

/** Shows the kernel what was pushed; `enterUring` follows. */
export function publishEntries(u: Uring): void {
  Atomics.store(u.ring, u.sqTail, u.tail);
}

/** Takes completions out of the ring, into the `done` columns. Returns how many. */
export function harvest(u: Uring): number {
  const { ring, cqes, cqMask, doneSlot, doneResult } = u;
  const head = u.head;
  const pending = (Atomics.load(ring, u.cqTail) - head) | 0;
  if (pending === 0) return 0;
  const count = pending < doneSlot.length ? pending : doneSlot.length;
  for (let i = 0; i < count; i++) {
    const at = cqes + (((head + i) & cqMask) << 2);
    doneSlot[i] = ring[at]!;
    doneResult[i] = ring[at + 2]!;
  }
  u.head = (head + count) | 0;
  Atomics.store(ring, u.cqHead, u.head);
  return count;
}

/** Completions wait in the kernel for us to enter it. */
export function mustEnter(u: Uring): boolean {
  return (Atomics.load(u.ring, u.sqFlags) & NEWS) !== 0;
}

export function hasCompleted(u: Uring): boolean {
  return Atomics.load(u.ring, u.cqTail) !== u.head || mustEnter(u);
}
