/**
 * What a queue needs to note in shared memory which chains it has taken and not yet used.
 * Specification, "Inflight I/O tracking"; layout in `wire/inflight.ts`.
 *
 * Theory of operation. The region outlives the process. Every write to it is one step of a
 * protocol that holds whenever the process dies between two steps: a chain is noted before the
 * device sees it, forgotten only after its used entry was published, and what was noted last
 * (split: the last batch; packed: the `old_` values) says which side of the publication we died
 * on. `inflight-split.hot.ts` and `inflight-packed.hot.ts` take the steps, `inflight-split.ts` and
 * `inflight-packed.ts` read them when a queue is made over a region that is not fresh.
 *
 * The region is the front-end's memory too. It is read at recovery alone, every number of it
 * judged; positions are kept here. Only descriptors of chains that are taken again are read when
 * they are taken, as those of a ring are.
 */
import { VringError } from '../base/errors.ts';
import * as layout from '../wire/inflight.ts';

/** Arena range of this ring's part. */
export type InflightMemory = { readonly offset: number; readonly sizeBytes: number };

/** In `InflightState.entryOf`: no chain of that id is out. */
const NOT_OUT = 0xffff;

/** One hidden class for both formats, and for queues without a region. */
export class InflightState {
  /** The region alone. */
  readonly view: DataView;
  /** Packed: used_idx, old_used_idx and their wrap counters, written as one word. */
  readonly positions: Float64Array;
  /** The same word, before it is written: [used_idx | old_used_idx << 16, wraps]. */
  readonly positionWords = new Int32Array(2);
  readonly positionCell = new Float64Array(this.positionWords.buffer);
  /** Order of the next chain, above that of every chain noted. */
  readonly counter = new Float64Array([1]);
  /** Split: `last_batch_head`. */
  lastBatchHead = 0;
  /** Packed: entries of the free list, and where it begins. */
  readonly nextFree: Uint16Array;
  freeHead = 0;
  freeCount = 0;
  /** Packed: first and last entry of each chain that is out, by buffer id; NOT_OUT for others. */
  readonly entryOf: Uint16Array;
  readonly lastOf: Uint16Array;

  /** Chains of a device before us, in the order in which it took them: heads, or entries. */
  again: Uint16Array;
  /** Packed: their buffer ids, and how many slots of the ring each takes. */
  againId: Uint16Array;
  againSlots: Uint16Array;
  againAt = 0;
  againCount = 0;
  /** 1: the last batch came from `again`. */
  retaken = 0;

  /** @throws VringError ERR_VRING_INFLIGHT: no region of this ring. */
  constructor(
    buffer: ArrayBufferLike,
    memory: InflightMemory | null,
    size: number,
    packed: boolean,
  ) {
    if (memory === null) {
      this.view = new DataView(new ArrayBuffer(0));
      this.positions = new Float64Array(0);
      this.nextFree = this.entryOf = this.lastOf = new Uint16Array(0);
      this.again = this.againId = this.againSlots = this.nextFree;
      return;
    }
    const { offset, sizeBytes } = memory;
    const need = layout.inflightQueueBytes(size, packed);
    if (sizeBytes < need) {
      throw badRegion(`${sizeBytes} bytes, a ring of ${size} needs ${need}`);
    }
    if (offset % 8 !== 0) throw badRegion(`at ${offset}, expected a multiple of 8`);
    this.view = new DataView(buffer, offset, sizeBytes);
    this.positions = new Float64Array(buffer, offset + layout.INFLIGHT_PACKED_USED_IDX, 1);
    const entries = packed ? packedEntries(sizeBytes) : 0;
    this.nextFree = new Uint16Array(entries);
    this.entryOf = new Uint16Array(packed ? size : 0).fill(NOT_OUT);
    this.lastOf = new Uint16Array(packed ? size : 0);
    this.again = this.againId = this.againSlots = new Uint16Array(0);
  }
}

/** Entries that the region has room for; a ring has at most 32768 descriptors. */
function packedEntries(sizeBytes: number): number {
  const room = Math.trunc(
    (sizeBytes - layout.INFLIGHT_PACKED_DESC) / layout.INFLIGHT_PACKED_ENTRY_BYTES,
  );
  return Math.min(room, 0xffff);
}

/**
 * Is the region fresh? Else it was left by a device before us.
 * @throws VringError ERR_VRING_INFLIGHT: it cannot be this ring's.
 */
export function isFresh(state: InflightState, size: number): boolean {
  const version = state.view.getUint16(layout.INFLIGHT_VERSION_AT, true);
  if (version === 0) return true;
  if (version !== layout.INFLIGHT_VERSION) {
    throw badRegion(`its version is ${version}, expected ${layout.INFLIGHT_VERSION}`);
  }
  const entries = state.view.getUint16(layout.INFLIGHT_DESC_NUM, true);
  if (entries < size) throw badRegion(`it is of ${entries} descriptors, the ring has ${size}`);
  return false;
}

/** Last step of making a region: it is none before. */
export function seal(state: InflightState, entries: number): void {
  state.view.setUint16(layout.INFLIGHT_DESC_NUM, entries, true);
  state.view.setUint16(layout.INFLIGHT_VERSION_AT, layout.INFLIGHT_VERSION, true);
}

/** Sorts what is to be done again into the order in which it was taken. */
export function resubmit(state: InflightState, found: readonly Noted[]): void {
  const sorted = [...found].sort((a, b) => a.counter - b.counter);
  state.again = Uint16Array.from(sorted, (noted) => noted.entry);
  state.againId = Uint16Array.from(sorted, (noted) => noted.id);
  state.againSlots = Uint16Array.from(sorted, (noted) => noted.slots);
  state.againCount = sorted.length | 0;
  state.counter[0] = (sorted.at(-1)?.counter ?? 0) + 1;
}

/** A head (split) or first entry (packed) of a chain, and when it was taken. */
export type Noted = {
  readonly entry: number;
  readonly counter: number;
  readonly id: number;
  readonly slots: number;
};

/** The u64 at `at`; counters that a peer made larger than 2^53 just lose their order. */
export function readCounter(view: DataView, at: number): number {
  return view.getUint32(at, true) + 4294967296 * view.getUint32(at + 4, true);
}

export function badRegion(problem: string): VringError {
  const help = 'give the ring memory that is all zeros (GET_INFLIGHT_FD makes some)';
  return new VringError('ERR_VRING_INFLIGHT', `inflight region: ${problem}; ${help}`, {
    recovery: 'reconnect',
  });
}
