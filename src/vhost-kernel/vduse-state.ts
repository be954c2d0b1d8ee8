/** Positions of a ring: VDUSE's structs, and vhost's one number. linux/vduse.h. */
import { VduseVqStatePacked, VduseVqStateSplit } from '../wire/vduse.ts';

const STATE_BYTES = 8;
const INDEX = 0x7fff;

/** Split: the avail index. Packed: four fields, see `PACKED_BASE_FRESH`. */
export function baseOfState(state: Uint8Array, packed: boolean): number {
  if (!packed) return VduseVqStateSplit.decode(state).availIndex;
  const { lastAvailCounter, lastAvailIdx, lastUsedCounter, lastUsedIdx } =
    VduseVqStatePacked.decode(state);
  const low = (lastAvailIdx & INDEX) | ((lastAvailCounter & 1) << 15);
  const high = (lastUsedIdx & INDEX) | ((lastUsedCounter & 1) << 15);
  return (low | (high << 16)) >>> 0;
}

export function stateOfBase(base: number, packed: boolean): Uint8Array {
  const state = new Uint8Array(STATE_BYTES);
  const view = new DataView(state.buffer);
  if (!packed) {
    VduseVqStateSplit.write(view, 0, { availIndex: base & 0xffff });
    return state;
  }
  VduseVqStatePacked.write(view, 0, {
    lastAvailCounter: (base >>> 15) & 1,
    lastAvailIdx: base & INDEX,
    lastUsedCounter: base >>> 31,
    lastUsedIdx: (base >>> 16) & INDEX,
  });
  return state;
}
