import { VringError } from '../base/errors.ts';
import { MAX_MEM_SLOTS, MAX_RING_SIZE } from '../base/limits.ts';
import type { AddressMap } from '../memory/address-map.ts';
import { logRing } from './dirty-log.hot.ts';
import { DirtyLog, type QueueLog } from './dirty-log.ts';
import { InflightState, type InflightMemory } from './inflight-state.ts';
import { recoverPacked } from './inflight-packed.ts';
import { recoverSplit } from './inflight-split.ts';
import {
  RING_AVAIL_ALIGN,
  RING_DESC_ALIGN,
  RING_EVENT_ALIGN,
  RING_USED_ALIGN,
  ringLayout,
} from '../wire/virtio.ts';

/** How a vring is laid out and what was negotiated. Offsets are arena offsets, translated. */
export type VringConfig = {
  /** Descriptors. A power of two for split rings; 1 .. 32768. */
  readonly size: number;
  readonly packed: boolean;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  readonly inOrder: boolean;
  readonly descOffset: number;
  /** Split: avail ring. Packed: driver event suppression. */
  readonly availOffset: number;
  /** Split: used ring. Packed: device event suppression. */
  readonly usedOffset: number;
  /** As in SET_VRING_BASE; see `splitBase` and `packedBase`. */
  readonly base: number;
  /** Split: a legacy driver of the other byte order (SET_VRING_ENDIAN). */
  readonly bigEndian?: boolean;
};

/** What goes with a queue besides its ring; nothing of it in most. */
export type QueueExtras = {
  /** The map is an IOTLB: an address that it lacks is a miss and no fault. */
  readonly iotlb?: boolean;
  /** Pages that are written get marked there. */
  readonly log?: QueueLog | null;
  /** What is taken and not yet used is noted there; see `inflight-state.ts`. */
  readonly inflight?: InflightMemory | null;
};

// Cells of `DeviceQueue.counters`.
export const COUNTER_TAKEN = 0;
export const COUNTER_USED = 1;
export const COUNTER_CALLS = 2;
export const COUNTER_CALLS_SUPPRESSED = 3;

// `DeviceQueue.format`.
const SPLIT = 0;
const PACKED = 1;
const BIG_ENDIAN = 2;

/** Twice the pages that two batches are in; a power of two. */
const RANGE_HINTS = 1024;

/** Permissions of a map that has none: enough for the ranges of any memory table. */
const ALL_ALLOWED = new Uint8Array(MAX_MEM_SLOTS).fill(3);

/** A map in which nothing is found: one impossible range, so that columns are never empty. */
const NOTHING: AddressMap = {
  count: 0,
  start: new Float64Array([Infinity]),
  end: new Float64Array([-Infinity]),
  delta: new Float64Array([0]),
};

/**
 * The device side of one virtqueue, split or packed: its cells and positions, no behaviour. What
 * works on it are the functions of `device.hot.ts`. Owned by one worker.
 *
 * Every field keeps one representation for life (small integer, or a typed array of one kind), so
 * that the hot functions stay monomorphic over both formats and store without allocating: a field
 * that would have to hold more than 31 bits lives in a Float64Array instead.
 */
export class DeviceQueue {
  readonly size: number;
  /** Which functions work on it: 0 split, 1 packed, 2 split of the other byte order. */
  readonly format: number;
  /** 0 or 1 each. */
  readonly packed: number;
  readonly eventIdx: number;
  readonly indirect: number;
  readonly inOrder: number;

  /** Sticky: the FAULT_* that broke the queue, 0 while it works. Set it for device-level faults. */
  fault = 0;

  /** Split: free-running, 16 bits. Packed: slot of the ring. */
  nextAvail = 0;
  nextUsed = 0;
  /** Packed: wrap counters, 0 or 1. */
  availWrap = 1;
  usedWrap = 1;
  /** Descriptors that `takeChain` has visited for the batch that is being taken. */
  visited = 0;
  /** Packed: slots per chain in the last batch, rounded up. */
  slotsPerChain = 1;
  /** Packed, 1: this processor may perform loads out of order; see packed-device.hot.ts. */
  weakOrder = process.arch === 'x64' ? 0 : 1;
  /** Used entries (packed: slots) published since `needsCall` was last asked; saturates. */
  sinceCall = 0;
  /** 0 until the first answer of `needsCall`: until then, what the driver has seen is unknown. */
  callKnown = 0;

  /** Descriptor table or ring, four words each: [addrLo, addrHi, len, last word of the format]. */
  readonly desc: Int32Array;
  /** Split: the avail ring, [flags, idx, ring[size], used_event]. Packed: empty. */
  readonly avail: Uint16Array;
  /** Split: the used ring by entries, [flags | idx << 16, {id, len}[size]]. Packed: empty. */
  readonly used: Int32Array;
  /** Split: the used ring by cells, [flags, idx, ..., avail_event]. Packed: empty. */
  readonly usedCells: Uint16Array;
  /** Packed: one word each, desc | flags << 16. Split: empty. */
  readonly driverEvent: Int32Array;
  readonly deviceEvent: Int32Array;

  /** All guest memory; indirect tables are read through it. */
  readonly arena: DataView;
  /** Arena offset of `desc`. */
  readonly descAt: Float64Array;
  /** Where the last indirect table was found, an arena offset. */
  readonly tableAt = new Float64Array(1);

  mapCount = 0;
  mapStart = NOTHING.start;
  mapEnd = NOTHING.end;
  mapDelta = NOTHING.delta;
  mapPermission: Uint8Array = ALL_ALLOWED;
  /** Index of the range that the last address was in: the next one is mostly in it, too. */
  lastRange = 0;
  /** What that range may be used for: bit 0 read, bit 1 write. */
  lastAllowed = 3;

  /** 0 or 1: the map is an IOTLB. */
  readonly iotlb: number;
  /** IOTLB: the range that a page was last found in, by the low bits of its number. */
  readonly rangeHint: Uint16Array;
  /**
   * The last `takeChains` ended at a chain for which the IOTLB lacks `missedAt[0]`: to be read 1,
   * to be written 2. 0: it did not. The chain stays in the ring.
   */
  missed = 0;
  readonly missedAt = new Float64Array(1);

  /** 0 or 1: `log` is in use. */
  readonly logged: number;
  readonly log: DirtyLog;
  /** 0 or 1: `inflight` is in use. */
  readonly tracked: number;
  readonly inflight: InflightState;

  /** Where loops that fetch lines ahead leave what they read, so that V8 keeps the reads. */
  touched = 0;
  /** A cell of our own, for fences. */
  readonly fence = new Int32Array(1);

  /** COUNTER_* cells; doubles, because Smi fields would be boxed past 2^31. */
  readonly counters = new Float64Array(4);

  /**
   * @throws VringError ERR_VRING_RING_SIZE, ERR_VRING_RING_ADDRESS, ERR_VRING_RING_BASE: what the
   * front-end configured cannot be a ring.
   */
  constructor(
    config: VringConfig,
    map: AddressMap,
    buffer: ArrayBufferLike,
    extras: QueueExtras = {},
  ) {
    const { size, packed, eventIdx } = config;
    const { log = null, inflight = null } = extras;
    checkRingMemory(config, buffer.byteLength);
    // `| 0`: a small number may arrive as a boxed double, which would make the field a double.
    this.size = size | 0;
    this.format = packed ? PACKED : config.bigEndian === true ? BIG_ENDIAN : SPLIT;
    this.packed = packed ? 1 : 0;
    this.eventIdx = eventIdx ? 1 : 0;
    this.indirect = config.indirect ? 1 : 0;
    this.inOrder = config.inOrder ? 1 : 0;
    this.desc = new Int32Array(buffer, config.descOffset, 4 * size);
    this.arena = new DataView(buffer);
    this.descAt = new Float64Array([config.descOffset]);
    if (packed) {
      this.avail = new Uint16Array(0);
      this.used = new Int32Array(0);
      this.usedCells = new Uint16Array(0);
      this.driverEvent = new Int32Array(buffer, config.availOffset, 1);
      this.deviceEvent = new Int32Array(buffer, config.usedOffset, 1);
    } else {
      this.avail = new Uint16Array(buffer, config.availOffset, 2 + size + (eventIdx ? 1 : 0));
      this.used = new Int32Array(buffer, config.usedOffset, 1 + 2 * size);
      this.usedCells = new Uint16Array(
        buffer,
        config.usedOffset,
        2 + 4 * size + (eventIdx ? 1 : 0),
      );
      this.driverEvent = new Int32Array(0);
      this.deviceEvent = new Int32Array(0);
    }
    this.iotlb = extras.iotlb === true ? 1 : 0;
    this.rangeHint = new Uint16Array(this.iotlb === 1 ? RANGE_HINTS : 0);
    this.logged = log === null ? 0 : 1;
    this.log = new DirtyLog(buffer, log, config.descOffset, packed);
    this.tracked = inflight === null ? 0 : 1;
    this.inflight = new InflightState(buffer, inflight, size, packed);
    this.#start(config.base);
    setAddressMap(this, map);
    if (inflight !== null && packed) recoverPacked(this);
    else if (inflight !== null) recoverSplit(this);
    if (log !== null) logRing(this);
  }

  #start(base: number): void {
    if (!this.packed) {
      if (base !== (base & 0xffff)) throw badBase(base, 'is not a 16-bit index');
      // Not from the base: a device that died may have used more than its front-end knows.
      const used = Atomics.load(this.usedCells, 1);
      this.nextUsed = this.format === BIG_ENDIAN ? swap16(used) : used;
      // In order, what was not used was not taken either, wherever the device before us was: what
      // it had begun is done again. "Inflight I/O tracking" needs no region for that.
      this.nextAvail = this.inOrder !== 0 ? this.nextUsed : base & 0xffff;
      return;
    }
    const { avail, availWrap, used, usedWrap } = decodePackedBase(base);
    if (avail >= this.size) throw badBase(base, `avail index ${avail} is not below ${this.size}`);
    if (used >= this.size) throw badBase(base, `used index ${used} is not below ${this.size}`);
    this.nextAvail = avail;
    this.availWrap = availWrap;
    this.nextUsed = used;
    this.usedWrap = usedWrap;
  }

  /** Chains of a device before us that wait to be handed to this one, before all others. */
  get resubmissions(): number {
    return this.inflight.againCount - this.inflight.againAt;
  }
  /** Chains handed to the device, those given back not counted. */
  get chainsTaken(): number {
    return this.counters[COUNTER_TAKEN];
  }
  get chainsUsed(): number {
    return this.counters[COUNTER_USED];
  }
  /** How often `needsCall` said yes, and no. */
  get calls(): number {
    return this.counters[COUNTER_CALLS];
  }
  get callsSuppressed(): number {
    return this.counters[COUNTER_CALLS_SUPPRESSED];
  }
}

function swap16(value: number): number {
  return ((value & 0xff) << 8) | (value >> 8);
}

/**
 * The guest's memory, or what the IOTLB knows of it, changed. Only while no chain of this queue is
 * in a batch.
 */
export function setAddressMap(q: DeviceQueue, map: AddressMap): void {
  const { count, start, end, delta, permission } = map.count > 0 ? map : NOTHING;
  q.mapPermission =
    permission ?? (count > MAX_MEM_SLOTS ? new Uint8Array(count).fill(3) : ALL_ALLOWED);
  q.lastAllowed = q.mapPermission[0]! & 3;
  q.missed = 0;
  q.mapCount = count | 0;
  q.mapStart = start;
  q.mapEnd = end;
  q.mapDelta = delta;
  q.lastRange = 0;
}

/**
 * What GET_VRING_BASE answers, and what `VringConfig.base` takes. All chains must have been used
 * or given back: neither format's base can say which chains are out.
 */
export function ringBase(q: DeviceQueue): number {
  if (!q.packed) return q.nextAvail;
  return encodePackedBase(q.nextAvail, q.availWrap, q.nextUsed, q.usedWrap);
}

/** Bits 0-14 avail index, 15 its wrap counter, 16-30 used index, 31 its wrap counter. */
export function encodePackedBase(
  avail: number,
  availWrap: number,
  used: number,
  usedWrap: number,
): number {
  return (avail | (availWrap << 15) | (used << 16) | (usedWrap << 31)) >>> 0;
}

/**
 * A base without an upper half comes from a front-end that knows only the avail position (DPDK's
 * virtio-user sends 0x8000 for a fresh ring): then used is where avail is, as in a drained ring.
 * That pair is the only one lost: used position 0 with wrap counter 0 and chains still out, and
 * a base is only taken and given for drained rings.
 */
export function decodePackedBase(base: number): {
  avail: number;
  availWrap: number;
  used: number;
  usedWrap: number;
} {
  if (base < 0 || base > 0xffff_ffff || !Number.isInteger(base)) throw badBase(base, 'is no u32');
  const low = base & 0xffff;
  const high = base >>> 16 === 0 ? low : base >>> 16;
  return { avail: low & 0x7fff, availWrap: low >> 15, used: high & 0x7fff, usedWrap: high >> 15 };
}

function badBase(base: number, problem: string): VringError {
  return new VringError('ERR_VRING_RING_BASE', `ring base 0x${base.toString(16)}: ${problem}`, {
    recovery: 'reconnect',
  });
}

/** Checks size, alignment and bounds of the three areas; shared with the driver side. */
export function checkRingMemory(
  config: Omit<VringConfig, 'base' | 'indirect' | 'inOrder'>,
  arenaBytes: number,
): void {
  const { size, packed } = config;
  const legal = Number.isInteger(size) && size >= 1 && size <= MAX_RING_SIZE;
  // 2.7: a split ring's size is a power of two. 2.8.10.1: a packed ring's need not be.
  if (!legal || (!packed && (size & (size - 1)) !== 0)) {
    const kind = packed ? 'packed' : 'split';
    throw new VringError('ERR_VRING_RING_SIZE', `${size} is no size of a ${kind} ring`, {
      recovery: 'reconnect',
    });
  }
  const layout = ringLayout(size, packed, config.eventIdx);
  const check = (area: string, offset: number, bytes: number, align: number) => {
    const inside = Number.isSafeInteger(offset) && offset >= 0 && offset + bytes <= arenaBytes;
    if (inside && offset % align === 0) return;
    const problem = inside ? `is not a multiple of ${align}` : `${bytes} bytes leave the arena`;
    throw new VringError('ERR_VRING_RING_ADDRESS', `${area} area at ${offset}: ${problem}`, {
      recovery: 'reconnect',
    });
  };
  check('descriptor', config.descOffset, layout.descBytes, RING_DESC_ALIGN);
  check(
    'driver',
    config.availOffset,
    layout.availBytes,
    packed ? RING_EVENT_ALIGN : RING_AVAIL_ALIGN,
  );
  check('device', config.usedOffset, layout.usedBytes, packed ? RING_EVENT_ALIGN : RING_USED_ALIGN);
}
