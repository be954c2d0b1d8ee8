/**
 * Where a ring goes on after its device died without saying so.
 *
 * The device is gone: nobody writes the ring but us. What it published as used is used. What it had
 * taken and not yet published is done again by its successor, so the position to start from is that
 * of the first chain that was not published, for both, the avail and the used side. Without an
 * inflight region that is exact for devices that use chains in order, as network devices do: the
 * base from the used index, as QEMU has it after a back-end closed. For a split ring of a device
 * that uses chains in any order, the avail ring is rewritten to hold what is still out.
 */
import { encodePackedBase } from '../virtqueue/index.ts';
import type { DriverQueue } from '../virtqueue/driver/index.ts';

const AVAIL_RING = 2; // u16 index in q.avail
const USED_IDX = 1; //  u16 index in q.usedCells
const USED_RING = 1; // i32 index in q.used

const AVAIL_BIT = 1 << 23; // of the last word of a packed descriptor
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

/**
 * The base for SET_VRING_BASE. Null: the device died in the middle of publishing a batch of a
 * packed ring (its first slot is written last), or broke the ring; the ring has to start anew.
 * `inflight`: the successor knows from its inflight region what is out, and mends the ring itself.
 */
export function recoverBase(q: DriverQueue, inflight: boolean): number | null {
  return q.packed === 0 ? recoverSplit(q, inflight) : recoverPacked(q, inflight);
}

function recoverSplit(q: DriverQueue, inflight: boolean): number | null {
  const { avail, out, size } = q;
  const mask = size - 1;
  const used = Atomics.load(q.usedCells, USED_IDX);
  const pending = (used - q.nextUsed) & 0xffff;
  if (pending > q.outstanding || q.unpublished > 0) return null;
  if (inflight) return used;
  const left = new Set<number>();
  for (let head = 0; head < size; head++) if (out[2 * head] !== 0) left.add(head);
  for (let i = 0; i < pending; i++) {
    // IN_ORDER: an entry may stand for those before it, too. 2.7.9.
    const ordered = q.order[(q.orderAt + i) & mask]!;
    const entry = q.used[USED_RING + 2 * ((q.nextUsed + i) & mask)]!;
    left.delete(q.inOrder !== 0 ? ordered : entry);
  }
  const count = q.outstanding - pending;
  if (left.size !== count) return null;
  const heads: number[] = [];
  for (let i = 0; i < count; i++) {
    const head = avail[AVAIL_RING + ((used + i) & mask)]!;
    if (left.delete(head)) heads.push(head);
  }
  heads.push(...left);
  for (const [i, head] of heads.entries()) avail[AVAIL_RING + ((used + i) & mask)] = head;
  return used;
}

function recoverPacked(q: DriverQueue, inflight: boolean): number | null {
  const { desc, out, size } = q;
  let slot = q.nextUsed;
  let wrap = q.usedWrap;
  let chains = q.outstanding;
  const skip = (slots: number): void => {
    slot += slots;
    if (slot < size) return;
    slot -= size;
    wrap ^= 1;
  };
  /** Words of a slot that the device used, or that the driver made available, this time round. */
  const usedWord = (): number => (wrap === 1 ? STATE : 0);
  const availWord = (): number => (wrap === 1 ? AVAIL_BIT : USED_BIT);

  let ordered = q.orderAt;
  while (chains > 0) {
    const word = desc[4 * slot + 3]!;
    if ((word & STATE) !== usedWord()) break;
    const id = word & 0xffff;
    if (id >= size || out[2 * id] === 0) return null;
    if (q.inOrder === 0) {
      skip(out[2 * id]!);
      chains--;
      continue;
    }
    for (;;) {
      const oldest = q.order[ordered]!;
      ordered = (ordered + 1) % size;
      skip(out[2 * oldest]!);
      chains--;
      if (oldest === id) break;
      if (chains === 0) return null;
    }
  }
  const base = encodePackedBase(slot, wrap, slot, wrap);
  if (inflight) return base;
  const seen = new Set<number>();
  while (chains > 0) {
    const id = desc[4 * slot + 3]! & 0xffff;
    const need = id < size ? out[2 * id]! : 0;
    if (need === 0 || seen.has(id)) return null;
    seen.add(id);
    for (let i = 0; i < need; i++) {
      if ((desc[4 * slot + 3]! & STATE) !== availWord()) return null;
      skip(1);
    }
    chains--;
  }
  return base;
}
