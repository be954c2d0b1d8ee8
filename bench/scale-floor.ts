/**
 * What the same frames cost at least: their bytes copied to where the plane would copy them, by one
 * native call per batch and direction, the entries of both rings and of the MAC table touched, and
 * nothing judged, counted or translated. It meets the same cache misses in the same memory, so what
 * grows here as well is the machine's, and what grows beyond it is ours.
 */
import { PrivateMemory } from '../src/memory/index.ts';
import type { MacTable } from '../src/switch/index.ts';
import { arena, CopyPlan } from '../src/sys/index.ts';
import {
  BATCH,
  FRAME_BYTES,
  type Guest,
  type GuestRing,
  HEADER_BYTES,
  RING_SIZE,
} from './scale-guest.ts';

const SLOT_BYTES = 96;
const COPIED_BYTES = HEADER_BYTES + FRAME_BYTES;
const RING_MASK = RING_SIZE - 1;
const MAX_RINGS = 512;

export class Floor {
  readonly #slots = PrivateMemory.allocate(BATCH * SLOT_BYTES);
  readonly #plan = new CopyPlan(BATCH);
  readonly #cells: Int32Array;
  readonly #mask: number;
  /** Frames that went to each receive queue in this pass. */
  readonly #filled = new Int32Array(MAX_RINGS);
  /** Keeps what is read from being optimized away. */
  sink = 0;

  constructor(macTable: MacTable) {
    this.#cells = macTable.cells;
    this.#mask = macTable.cells.length / 4 - 1;
  }

  /** One batch of every ring, which must hold one. */
  pass(busy: readonly Guest[], pairs: number): void {
    this.#filled.fill(0);
    for (const guest of busy) {
      for (let q = 0; q < pairs; q++) this.#batch(guest.transmit[q]!, busy);
    }
  }

  #batch(ring: GuestRing, busy: readonly Guest[]): void {
    const plan = this.#plan;
    const { view } = arena();
    const slots = this.#slots.offset;
    for (let i = 0; i < BATCH; i++) {
      this.#touchRing(ring, i);
      plan.source[i] = ring.deviceBuffer(i);
      plan.target[i] = slots + i * SLOT_BYTES;
      plan.length[i] = COPIED_BYTES;
    }
    plan.count = BATCH;
    plan.run();
    for (let i = 0; i < BATCH; i++) {
      const at = slots + i * SLOT_BYTES + HEADER_BYTES;
      const target = view.getUint8(at + 2);
      this.sink ^=
        this.#touchTable(view.getInt32(at + 2)) ^ this.#touchTable(view.getInt32(at + 8));
      const { receive } = busy[target]!;
      const q = receive.length === 1 ? 0 : i % receive.length;
      const n = this.#filled[target * receive.length + q]!++;
      const to = receive[q]!;
      this.#touchRing(to, n);
      plan.source[i] = slots + i * SLOT_BYTES;
      plan.target[i] = to.deviceBuffer(n);
      plan.length[i] = COPIED_BYTES;
    }
    plan.count = BATCH;
    plan.run();
  }

  /** The descriptor, the avail and the used entry of the next chain but `ahead`. */
  #touchRing({ queue, at }: GuestRing, ahead: number): void {
    const n = (at + ahead) & RING_MASK;
    this.sink ^= queue.desc[4 * queue.avail[2 + n]!]!;
    queue.used[2 + 2 * n] = n; // overwritten when the device uses the chain
  }

  #touchTable(lo: number): number {
    let hash = Math.imul(lo, 0x9e3779b1);
    hash ^= hash >>> 15;
    return this.#cells[4 * (hash & this.#mask)]!;
  }

  close(): void {
    this.#slots.close();
  }
}
