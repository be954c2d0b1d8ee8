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

  /** Header slots, HEADER_SLOT_BYTES each. */
  readonly headers: Uint8Array;
  /** Arena offset of `headers`, so that ports can copy into and out of it by a CopyPlan. */
  readonly headersAt: number;
  readonly headerView: DataView;
  /** Where in `headers` the frame starts. */
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
  readonly offload: Uint8Array;
  readonly csumStart: Uint16Array;
  readonly csumOffset: Uint16Array;
  /** GSO_*; gsoSize is the payload bytes per segment; gsoHeaderLen a hint only. */
  readonly gsoType: Uint8Array;
  readonly gsoSize: Uint16Array;
  readonly gsoHeaderLen: Uint16Array;

  /** Set by the switch: VLAN id. */
  readonly vlan: Uint16Array;
  /**
   * Set by the switch: TAG_PRESENT while a tag is in the header, and in the low four bits what the
   * tag says or shall say beside the VLAN: priority (3 bits) and drop eligibility (1).
   */
  readonly tagged: Uint8Array;
  /** Set by the switch: port index, DESTINATION_FLOOD, or DESTINATION_DROP and below. */
  readonly destination: Int16Array;

  /** `memory`: the arena, and FRAME_BATCH_BYTES of our own memory in it for the header slots. */
  constructor(memory: HeaderMemory, capacity = BATCH, segCapacity = BATCH_SEGMENTS) {
    assert(capacity <= BATCH, 'header memory is for BATCH frames');
    this.capacity = capacity;
    this.segCapacity = segCapacity;
    const { buffer, at } = memory;
    this.headers = new Uint8Array(buffer, at, capacity * HEADER_SLOT_BYTES);
    this.headerView = new DataView(buffer, at, capacity * HEADER_SLOT_BYTES);
    this.headersAt = at;
    this.headerAt = new Int32Array(capacity);
    this.headerLen = new Int32Array(capacity);
    this.frameLen = new Int32Array(capacity);
    this.segFirst = new Int32Array(capacity);
    this.segCount = new Int32Array(capacity);
    this.segOffset = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
    this.offload = new Uint8Array(capacity);
    this.csumStart = new Uint16Array(capacity);
    this.csumOffset = new Uint16Array(capacity);
    this.gsoType = new Uint8Array(capacity);
    this.gsoSize = new Uint16Array(capacity);
    this.gsoHeaderLen = new Uint16Array(capacity);
    this.vlan = new Uint16Array(capacity);
    this.tagged = new Uint8Array(capacity);
    this.destination = new Int16Array(capacity);
  }
}

export { HEADER_COPY_BYTES };
