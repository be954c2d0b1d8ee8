/**
 * Between frames in columns and the two rings of a TPACKET_V3 socket with PACKET_VNET_HDR. What the
 * kernel wrote is its own word, but what is in a frame is a stranger's: only lengths are judged
 * here, the rest is the switch's business.
 */
import type { CopyPlan } from '../sys/arena.ts';
import type { FrameBatch } from '../switch/frame-batch.ts';

const SLOT_BYTES = 96; //   HEADER_SLOT_BYTES
const SLOT_START = 16; //   HEADER_SLOT_START
const COPY_BYTES = 64; //   HEADER_COPY_BYTES
const FRAME_MAX = 65553; // MAX_FRAME_BYTES
const FRAME_MIN = 14; //    MIN_FRAME_BYTES
const ADDRESSES = 12; //    bytes of a frame in front of its tag
const TAG = 4;

const HEADER_AT = 0; //     columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

const SNAPLEN = 3; //  words of struct tpacket3_hdr
const LEN = 4;
const STATUS = 5;
const MAC_NET = 6;
const VLAN_TCI = 8;
const VLAN_TPID = 9;
const HEADER_BYTES = 48; // of it
const VLAN_VALID = 16; //      TP_STATUS_VLAN_VALID
const VLAN_TPID_VALID = 64; // TP_STATUS_VLAN_TPID_VALID
const SEND_REQUEST = 1;
const TPID = 0x8100;
const VNET_BYTES = 10;
const OFFLOAD_BITS = 3; // NEEDS_CSUM and DATA_VALID are the same bits on both sides
const NEEDS_CSUM = 1;
const HDR_LEN_MAX = 256; // linear part of a frame to be cut up; its headers are shorter

/** Where reading stands in the receive ring; owned by the plane. */
export class PacketCursor {
  /** Frames of the block that were not read yet, and where the next one is, ring-relative. */
  left = 0;
  nextAt = 0;
  /** End of the block, ring-relative. */
  endAt = 0;
  /** Frames that were left out because of their lengths. */
  errors = 0;
}

/**
 * Appends frames of the open block to an empty batch. Returns how many; the block is done when
 * `cursor.left` is 0. `words` and `halves` are the ring, `ringAt` is where the arena has it.
 */
export function readBlock(
  words: Int32Array,
  halves: Uint16Array,
  ringAt: number,
  cursor: PacketCursor,
  batch: FrameBatch,
  plan: CopyPlan, // empty; room for two ranges per frame
): number {
  const { rows, segOffset, segLen, capacity, headersAt } = batch;
  const { ranges, capacity: planCapacity } = plan;
  const { endAt } = cursor;
  let { left, nextAt } = cursor;
  let plain = 1;
  let n = 0;
  let i = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  while (left > 0 && i < capacity) {
    const word = nextAt >> 2;
    if (nextAt < 0 || nextAt + HEADER_BYTES > endAt) {
      cursor.errors += left;
      left = 0;
      break;
    }
    const lenBytes = words[word + SNAPLEN];
    const at = nextAt + (words[word + MAC_NET] & 0xffff);
    const whole = words[word + LEN];
    const status = words[word + STATUS];
    const tagAt = word;
    nextAt += words[word];
    left--;
    const tag = (status & VLAN_VALID) === 0 ? 0 : TAG;
    const frameLen = lenBytes + tag;
    // A snapshot that is shorter than its frame was longer than a block.
    if (lenBytes !== whole || lenBytes < FRAME_MIN || frameLen > FRAME_MAX) {
      cursor.errors++;
      continue;
    }
    if (at - VNET_BYTES < 0 || at + lenBytes > endAt || (at & 1) !== 0) {
      cursor.errors++;
      continue;
    }
    const headerLen = frameLen < COPY_BYTES ? frameLen : COPY_BYTES;
    const headerAt = i * SLOT_BYTES + SLOT_START;
    const from = ringAt + at;
    const taken = headerLen - tag;
    if (tag === 0) {
      ranges[n] = from;
      ranges[n + planCapacity] = headersAt + headerAt;
      ranges[n + 2 * planCapacity] = headerLen;
      n++;
    } else {
      ranges[n] = from;
      ranges[n + planCapacity] = headersAt + headerAt;
      ranges[n + 2 * planCapacity] = ADDRESSES;
      ranges[n + 1] = from + ADDRESSES;
      ranges[n + 1 + planCapacity] = headersAt + headerAt + ADDRESSES + TAG;
      ranges[n + 1 + 2 * planCapacity] = taken - ADDRESSES;
      n += 2;
      const tpid = (status & VLAN_TPID_VALID) === 0 ? TPID : words[tagAt + VLAN_TPID] & 0xffff;
      writeTag(batch.headers, headerAt + ADDRESSES, tpid, words[tagAt + VLAN_TCI]);
    }
    rows[i + HEADER_AT] = headerAt;
    rows[i + HEADER_LEN] = headerLen;
    rows[i + FRAME_LEN] = frameLen;
    rows[i + SEG_FIRST] = batch.segments;
    rows[i + SEG_COUNT] = 0;
    if (lenBytes > taken) {
      segOffset[batch.segments] = from + taken;
      segLen[batch.segments++] = lenBytes - taken;
      rows[i + SEG_COUNT] = 1;
    }
    const header = (at - VNET_BYTES) >> 1; // flags, gso_type
    const flags = halves[header];
    rows[i + OFFLOAD] = flags & OFFLOAD_BITS;
    rows[i + GSO_TYPE] = flags >> 8;
    if (flags !== 0) {
      plain = 0;
      readOffload(halves, header, batch, i, tag);
    }
    bytes += frameLen;
    if (frameLen > longest) longest = frameLen;
    if (frameLen < shortest) shortest = frameLen;
    i++;
  }
  cursor.left = left;
  cursor.nextAt = nextAt;
  batch.count = i;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  batch.plain = plain;
  plan.count = n;
  plan.run();
  return i;
}

/** The tag that the card or the kernel took out of the frame. */
function writeTag(headers: Uint8Array, at: number, tpid: number, tci: number): void {
  headers[at] = tpid >> 8;
  headers[at + 1] = tpid;
  headers[at + 2] = tci >> 8;
  headers[at + 3] = tci;
}

/** The rest of the virtio-net header, whose positions do not count the tag. */
function readOffload(
  halves: Uint16Array,
  header: number,
  batch: FrameBatch,
  i: number,
  tag: number,
): void {
  const hint = halves[header + 1];
  batch.gsoHeaderLen[i] = hint === 0 ? 0 : hint + tag;
  batch.gsoSize[i] = halves[header + 2];
  batch.csumStart[i] = halves[header + 3] + tag;
  batch.csumOffset[i] = halves[header + 4];
}

/** Where writing stands in the transmit ring; owned by the plane. */
export class PacketSlots {
  /** Ring-relative offset of every slot. */
  readonly at: Int32Array;
  next = 0;
  /** Frames and bytes that the kernel was not asked to send yet. */
  pending = 0;
  pendingBytes = 0;

  constructor(at: Int32Array) {
    this.at = at;
  }
}

/**
 * Writes frames `list[0 .. count)` into the next slots and marks them for the next `ringSend`: the
 * kernel looks at a slot only during that call of ours. Returns how many; with fewer than `count`
 * the kernel has not sent yet what the next slot has.
 */
export function writeSlots(
  words: Int32Array,
  halves: Uint16Array,
  ringAt: number,
  slots: PacketSlots,
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  plan: CopyPlan, // empty
): number {
  const { rows, segOffset, segLen, headersAt } = batch;
  const { ranges, capacity } = plan;
  const slotCount = slots.at.length;
  let { next } = slots;
  let bytes = 0;
  let n = 0;
  let k = 0;
  for (; k < count; k++) {
    const i = list[k];
    const slotAt = slots.at[next];
    const word = slotAt >> 2;
    if (words[word + STATUS] !== 0) break;
    const segments = rows[i + SEG_COUNT];
    if (n + segments + 1 > capacity) {
      plan.count = n;
      plan.run();
      n = 0;
    }
    const headerAt = slotAt + HEADER_BYTES;
    const frameAt = ringAt + headerAt + VNET_BYTES;
    const headerLen = rows[i + HEADER_LEN];
    ranges[n] = headersAt + rows[i + HEADER_AT];
    ranges[n + capacity] = frameAt;
    ranges[n + 2 * capacity] = headerLen;
    n++;
    let to = frameAt + headerLen;
    const first = rows[i + SEG_FIRST];
    for (let s = first; s < first + segments; s++) {
      ranges[n] = segOffset[s];
      ranges[n + capacity] = to;
      ranges[n + 2 * capacity] = segLen[s];
      to += segLen[s];
      n++;
    }
    writeOffload(halves, headerAt >> 1, batch, i);
    const frameLen = rows[i + FRAME_LEN];
    words[word] = 0; // tp_next_offset
    words[word + LEN] = VNET_BYTES + frameLen;
    words[word + STATUS] = SEND_REQUEST;
    bytes += frameLen;
    next = next + 1 === slotCount ? 0 : next + 1;
  }
  slots.next = next;
  slots.pending += k;
  slots.pendingBytes += bytes;
  plan.count = n;
  plan.run();
  return k;
}

/** Did the kernel leave frames in their slots? It takes them in order, so the last one tells. */
export function hasUnsent(words: Int32Array, slots: PacketSlots): boolean {
  const { at, next } = slots;
  return words[(at[next === 0 ? at.length - 1 : next - 1] >> 2) + STATUS] === SEND_REQUEST;
}

/**
 * Empties the slots whose frames the kernel did not take. Returns how many. What is written next
 * goes where the kernel looks next: it stopped at the first of them.
 */
export function takeBack(words: Int32Array, slots: PacketSlots): number {
  const { at } = slots;
  let count = 0;
  while (count < at.length && hasUnsent(words, slots)) {
    slots.next = slots.next === 0 ? at.length - 1 : slots.next - 1;
    words[(at[slots.next] >> 2) + STATUS] = 0;
    count++;
  }
  slots.pending = 0;
  slots.pendingBytes = 0;
  return count;
}

/** The virtio-net header in front of a frame. */
function writeOffload(halves: Uint16Array, at: number, batch: FrameBatch, i: number): void {
  const needsCsum = batch.offload[i] & NEEDS_CSUM;
  const gsoType = batch.gsoType[i];
  if (needsCsum === 0 && gsoType === 0) {
    halves[at] = 0;
    halves[at + 1] = 0;
    halves[at + 2] = 0;
    halves[at + 3] = 0;
    halves[at + 4] = 0;
    return;
  }
  // The hint is the guest's: the kernel refuses frames that are shorter.
  const hint = batch.gsoHeaderLen[i];
  const hintMax = batch.frameLen[i] < HDR_LEN_MAX ? batch.frameLen[i] : HDR_LEN_MAX;
  halves[at] = needsCsum | (gsoType << 8);
  halves[at + 1] = gsoType === 0 || hint > hintMax ? 0 : hint;
  halves[at + 2] = gsoType === 0 ? 0 : batch.gsoSize[i];
  halves[at + 3] = needsCsum === 0 ? 0 : batch.csumStart[i];
  halves[at + 4] = needsCsum === 0 ? 0 : batch.csumOffset[i];
}
