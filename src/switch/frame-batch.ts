import { assert } from '../base/assert.ts';
import { BATCH, BATCH_SEGMENTS, HEADER_COPY_BYTES } from '../base/limits.ts';

/** Offload state of a frame, in `FrameBatch.offload`. */
export const OFFLOAD_NEEDS_CSUM = 1; //  the checksum from csumStart on is still to be filled in
export const OFFLOAD_DATA_VALID = 2; //  the sender vouches for the checksum

/** Segmentation that a frame still needs, in `FrameBatch.gsoType`. */
export const GSO_NONE = 0;
export const GSO_TCPV4 = 1;
export const GSO_UDP = 3; //     UFO, IP fragmentation of UDP
export const GSO_TCPV6 = 4;
export const GSO_UDP_L4 = 5; //  USO
export const GSO_ECN = 0x80; //  flag beside a TCP type

/** In `FrameBatch.tagged`: the header has an 802.1Q tag now. */
export const TAG_PRESENT = 0x10;

/** Bytes kept for the header of one frame: headroom, the copy, and slack for whole-word copies. */
export const HEADER_SLOT_BYTES = 96;
/**
 * Where the frame starts in its slot: room for a 12-byte virtio-net header and a pushed 4-byte
 * VLAN tag in front.
 */
export const HEADER_SLOT_START = 16;

/** `destination`: to every other member of the frame's VLAN. */
export const DESTINATION_FLOOD = -1;
/**
 * `destination` at or below: dropped. `DESTINATION_DROP - destination` is the counter column that
 * names the reason (see counters.ts).
 */
export const DESTINATION_DROP = -2;

/** Distance of two columns in `FrameBatch.rows`, in words. */
export const FRAME_ROW_STRIDE = BATCH;
// Columns of `FrameBatch.rows`; hot files have the offsets, HEADER_LEN is 64 and so on.
const HEADER_AT = 0;
const HEADER_LEN = 1;
const FRAME_LEN = 2;
const SEG_FIRST = 3;
const SEG_COUNT = 4;
const OFFLOAD = 5;
const GSO_TYPE = 6;
const VLAN = 7;
const TAGGED = 8;
const DESTINATION = 9;
const COLUMNS = 10;

/** Header slots of one batch. */
export const FRAME_BATCH_BYTES = BATCH * HEADER_SLOT_BYTES;

/** Where a batch has its header slots: an offset in the arena, or in a test's one buffer. */
export type HeaderMemory = { readonly buffer: ArrayBufferLike; readonly at: number };

/**
 * Frames on their way through the switch, in columns. The first `headerLen` bytes of a frame (up
 * to HEADER_COPY_BYTES) are ours, copied once: they are judged, may be edited (VLAN), and are what
 * is written to the destination. The rest stays where the source has it, as arena segments.
 *
 * Owned by one worker and reused; filled by a port's `receive`, valid until its `release`.
 */
export class FrameBatch {
  readonly capacity: number;
  readonly segCapacity: number;
  count = 0;
  segments = 0;
  /**
   * 1: no frame has an offload or more than one segment behind its header, frame i has header slot
   * i and starts at HEADER_SLOT_START in it, and the three sums below hold. 0: not known. Set by
   * `receive`; the switch zeroes it before. Edits of tags leave it but not the sums.
   */
  plain = 0;
  /** Sum, largest and smallest of `frameLen`. */
  bytes = 0;
  longest = 0;
  shortest = 0;

  /** Header slots, HEADER_SLOT_BYTES each. */
  readonly headers: Uint8Array;
  /** Arena offset of `headers`, so that ports can copy into and out of it by a CopyPlan. */
  readonly headersAt: number;
  readonly headerView: DataView;
  readonly headerWords: Int32Array;

  /**
   * The int columns below, one behind the other, FRAME_ROW_STRIDE words apart: loops over many
   * columns go through this one array, whose pointer stays in a register.
   */
  readonly rows: Int32Array;
  /** Where in `headers` the frame starts: a multiple of 4. */
  readonly headerAt: Int32Array;
  /**
   * Bytes of the frame that are in `headers`. `receive` copies min(frameLen, HEADER_COPY_BYTES);
   * `transmit` sees any number from MIN_FRAME_BYTES to HEADER_COPY_BYTES + 4 (a pushed tag).
   */
  readonly headerLen: Int32Array;
  /** Bytes of the whole frame: header copy plus segments. */
  readonly frameLen: Int32Array;
  /** The segments behind the header copy. */
  readonly segFirst: Int32Array;
  readonly segCount: Int32Array;
  readonly segOffset: Float64Array;
  readonly segLen: Int32Array;

  /** OFFLOAD_* bits. csumStart and csumOffset count from the start of the frame. */
  readonly offload: Int32Array;
  readonly csumStart: Uint16Array;
  readonly csumOffset: Uint16Array;
  /** GSO_*; gsoSize is the payload bytes per segment; gsoHeaderLen a hint only. */
  readonly gsoType: Int32Array;
  readonly gsoSize: Uint16Array;
  readonly gsoHeaderLen: Uint16Array;

  /** Set by the switch: VLAN id. */
  readonly vlan: Int32Array;
  /**
   * Set by the switch: TAG_PRESENT while a tag is in the header, and in the low four bits what the
   * tag says or shall say beside the VLAN: priority (3 bits) and drop eligibility (1).
   */
  readonly tagged: Int32Array;
  /** Set by the switch: port index, DESTINATION_FLOOD, or DESTINATION_DROP and below. */
  readonly destination: Int32Array;

  /** `memory`: the arena, and FRAME_BATCH_BYTES of our own memory in it for the header slots. */
  constructor(memory: HeaderMemory, capacity = BATCH, segCapacity = BATCH_SEGMENTS) {
    assert(capacity <= BATCH, 'header memory is for BATCH frames');
    this.capacity = capacity | 0;
    this.segCapacity = segCapacity | 0;
    const { buffer, at } = memory;
    this.headers = new Uint8Array(buffer, at, capacity * HEADER_SLOT_BYTES);
    this.headerView = new DataView(buffer, at, capacity * HEADER_SLOT_BYTES);
    this.headerWords = new Int32Array(buffer, at, (capacity * HEADER_SLOT_BYTES) / 4);
    this.headersAt = at;
    const rows = new Int32Array(COLUMNS * FRAME_ROW_STRIDE);
    const column = (k: number) =>
      rows.subarray(k * FRAME_ROW_STRIDE, k * FRAME_ROW_STRIDE + capacity);
    this.rows = rows;
    this.headerAt = column(HEADER_AT);
    this.headerLen = column(HEADER_LEN);
    this.frameLen = column(FRAME_LEN);
    this.segFirst = column(SEG_FIRST);
    this.segCount = column(SEG_COUNT);
    this.segOffset = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
    this.offload = column(OFFLOAD);
    this.csumStart = new Uint16Array(capacity);
    this.csumOffset = new Uint16Array(capacity);
    this.gsoType = column(GSO_TYPE);
    this.gsoSize = new Uint16Array(capacity);
    this.gsoHeaderLen = new Uint16Array(capacity);
    this.vlan = column(VLAN);
    this.tagged = column(TAGGED);
    this.destination = column(DESTINATION);
  }
}

export { HEADER_COPY_BYTES };
