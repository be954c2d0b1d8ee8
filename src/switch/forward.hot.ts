import type { FrameBatch } from './frame-batch.ts';
import { admitFrame, checkFrame } from './ingress.hot.ts';
import { LEARN_ADDED, LEARN_LIMIT, LEARN_MOVED, LEARN_OVERFLOW } from './mac-table.hot.ts';
import { learnMac, lookupMac } from './mac-table.hot.ts';

/**
 * The two passes over a received batch: judge the frames and learn their sources, then sort them
 * into one list per destination port.
 */

// The same numbers are in frame-batch.ts and counters.ts.
const FLOOD = -1;
const DROP = -2;
const DROP_SOURCE_GROUP = DROP - 19;
const DROP_RESERVED = DROP - 20;
const DROP_SAME_PORT = DROP - 21;
const RX_MULTICAST = 4;
const FLOOD_COPIES = 5;
const COUNT_LEARNED = 6;
const COUNT_MOVED = 7;
const COUNT_LEARN_LIMIT = 8;
const COUNT_LEARN_OVERFLOW = 9;
const DROP_NO_PORT = 22;
const MIN_FRAME_BYTES = 14;
const MAX_FRAME_BYTES = 65553;
const FRAME_BYTES_SPAN = MAX_FRAME_BYTES - MIN_FRAME_BYTES;
const NEEDS_CSUM = 1;
const MIN_CSUM_START = 34; // as in ingress.hot.ts
const MAX_CSUM_START = 65531;
const TYPE_AT = 12;
const TYPE_CTAG = 0x8100;
const TAG_PRESENT = 0x10; // as in frame-batch.ts
const TYPE_CTAG_LE = 0x0081; // the same two bytes in a little-endian word
const LEARN_REFRESHED = 0;
const GROUP_BIT = 0x0100; //    in the first two bytes of an address
const SOURCE_GROUP = 0x10000; // in bytes 4 to 7 of a frame, read little-endian
const RESERVED_TOP = 0x0180; // 01:80:c2:00:00:00 .. 0f, IEEE 802.1D table 7-10
const RESERVED_LO = 0xc2000000 | 0;
const RESERVED_MASK = ~0xf;
const PORT_SET_WORDS = 8;

const HEADER_AT = 0; // columns of FrameBatch.rows
const FRAME_LEN = 128;
const OFFLOAD = 320;
const GSO_TYPE = 384;
const VLAN = 448;
const TAGGED = 512;
const DESTINATION = 576;

/** Words of `facts`: what the whole batch is like. */
export const FACT_BYTES = 0; //   sum of the frames' lengths
export const FACT_LONGEST = 1; // length of the longest
export const FACT_SPECIAL = 2; // SPECIAL_* of its frames
export const FACT_ONLY = 3; //    port that all frames go to and no other; FLOOD: not so
export const FACT_WORDS = 4;

/** Some frame has a tag or segments to be made, or was dropped as malformed. */
export const SPECIAL_FRAME = 1;
/** Some frame leaves its checksum to the receiver. */
export const SPECIAL_CSUM = 2;

/**
 * Judges frames [0 .. count) of port `ingress`: sets `vlan`, `tagged` and `destination`, and learns
 * the sources. `untagged`, `access` and `allowed` are the port's VlanRules, `row` is where its
 * counters start. FACT_SPECIAL and FACT_ONLY of `facts` are set.
 */
export function judgeFrames(
  batch: FrameBatch,
  count: number,
  ingress: number,
  untagged: number,
  access: boolean,
  allowed: Uint32Array,
  learnLimit: number,
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  counters: Float64Array,
  row: number,
  facts: Int32Array,
): void {
  const { headerView, headerWords, rows } = batch;
  // The addresses of the last frame that was forwarded, its VLAN and its fate. VLANs begin at 1.
  let lastAt = -1;
  let lastVid = 0;
  let target = FLOOD;
  let special = 0;
  let first = FLOOD; // fate of the first frame
  let mixed = 0; //     not all have that fate
  for (let i = 0; i < count; i++) {
    if (lastAt >= 0 && lastVid === untagged) {
      i = judgeRun(batch, i, count, lastAt, untagged, target);
      if ((special & SPECIAL_CSUM) !== 0) {
        i = judgeChecksumRun(batch, i, count, lastAt, untagged, target);
      }
      if (i === count) break;
    }
    const lenBytes = rows[i + FRAME_LEN];
    const at = rows[i + HEADER_AT];
    let vid = untagged;
    const needsCsum = rows[i + OFFLOAD] & NEEDS_CSUM;
    const isOdd =
      (lenBytes - MIN_FRAME_BYTES) >>> 0 > FRAME_BYTES_SPAN ||
      rows[i + GSO_TYPE] !== 0 ||
      headerView.getUint16(at + TYPE_AT) === TYPE_CTAG ||
      untagged === 0;
    if (isOdd || needsCsum !== 0) {
      special |= isOdd ? SPECIAL_FRAME : SPECIAL_CSUM;
      vid = admitFrame(batch, i, untagged, access, allowed);
      if (vid < 0) {
        rows[i + DESTINATION] = vid;
        mixed = 1;
        continue;
      }
    } else rows[i + TAGGED] = 0;
    rows[i + VLAN] = vid;

    const word = at >> 2;
    const last = lastAt >> 2;
    const isKnown = lastAt >= 0 && vid === lastVid;
    const isSource =
      isKnown &&
      headerWords[word + 2] === headerWords[last + 2] &&
      (headerWords[word + 1] ^ headerWords[last + 1]) >>> 16 === 0;
    if (!isSource) {
      if ((headerWords[word + 1] & SOURCE_GROUP) !== 0) {
        rows[i + DESTINATION] = DROP_SOURCE_GROUP;
        mixed = 1;
        continue;
      }
      learnSource(headerView, at, vid, ingress, learnLimit, cells, head, learned, counters, row);
    }
    target = fateOf(headerView, at, vid, ingress, cells, head);
    lastAt = at;
    lastVid = vid;
    rows[i + DESTINATION] = target;
    if (i === 0) first = target;
    else if (target !== first) mixed = 1;
  }
  facts[FACT_SPECIAL] = special;
  facts[FACT_ONLY] = mixed === 0 ? first : FLOOD;
}

/**
 * Frames of one flow come in runs: plain untagged frames from `from` on with the addresses of the
 * header at `lastAt` are in the same VLAN, have the same fate, and bring nothing new to learn.
 * Returns the first frame that is anything else. It calls nothing, so that V8 keeps what it needs
 * of the arrays in registers.
 */
function judgeRun(
  batch: FrameBatch,
  from: number,
  count: number,
  lastAt: number,
  vid: number,
  target: number,
): number {
  const { headerWords, rows } = batch;
  const word0 = headerWords[lastAt >> 2];
  const word1 = headerWords[(lastAt >> 2) + 1];
  const word2 = headerWords[(lastAt >> 2) + 2];
  let i = from;
  for (; i < count; i++) {
    const word = rows[i + HEADER_AT] >> 2;
    if (
      (rows[i + FRAME_LEN] - MIN_FRAME_BYTES) >>> 0 > FRAME_BYTES_SPAN ||
      ((rows[i + OFFLOAD] & NEEDS_CSUM) | rows[i + GSO_TYPE]) !== 0 ||
      (headerWords[word + 3] & 0xffff) === TYPE_CTAG_LE ||
      headerWords[word] !== word0 ||
      headerWords[word + 1] !== word1 ||
      headerWords[word + 2] !== word2
    ) {
      break;
    }
    rows[i + TAGGED] = 0;
    rows[i + VLAN] = vid;
    rows[i + DESTINATION] = target;
  }
  return i;
}

/**
 * As `judgeRun`, for frames that leave their checksums to the receiver; one loop for both took 3 ns
 * more of every frame that does not.
 */
function judgeChecksumRun(
  batch: FrameBatch,
  from: number,
  count: number,
  lastAt: number,
  vid: number,
  target: number,
): number {
  const { headerWords, rows, csumStart, csumOffset } = batch;
  const word0 = headerWords[lastAt >> 2];
  const word1 = headerWords[(lastAt >> 2) + 1];
  const word2 = headerWords[(lastAt >> 2) + 2];
  let i = from;
  for (; i < count; i++) {
    const word = rows[i + HEADER_AT] >> 2;
    const lenBytes = rows[i + FRAME_LEN];
    const start = csumStart[i]; // as in `checkOffload`, which says why
    if (
      (lenBytes - MIN_FRAME_BYTES) >>> 0 > FRAME_BYTES_SPAN ||
      ((~rows[i + OFFLOAD] & NEEDS_CSUM) | rows[i + GSO_TYPE]) !== 0 ||
      start < MIN_CSUM_START ||
      start > MAX_CSUM_START ||
      start + csumOffset[i] + 2 > lenBytes ||
      (headerWords[word + 3] & 0xffff) === TYPE_CTAG_LE ||
      headerWords[word] !== word0 ||
      headerWords[word + 1] !== word1 ||
      headerWords[word + 2] !== word2
    ) {
      break;
    }
    rows[i + TAGGED] = 0;
    rows[i + VLAN] = vid;
    rows[i + DESTINATION] = target;
  }
  return i;
}

/** FACT_BYTES and FACT_LONGEST of a batch that was received and not edited. */
export function measureFrames(batch: FrameBatch, count: number, facts: Int32Array): void {
  let bytes = batch.bytes;
  let longest = batch.longest;
  if (batch.plain === 0) {
    bytes = 0;
    longest = 0;
    const frameLen = batch.frameLen;
    for (let i = 0; i < count; i++) {
      const lenBytes = frameLen[i];
      bytes += lenBytes;
      if (lenBytes > longest) longest = lenBytes;
    }
  }
  facts[FACT_BYTES] = bytes;
  facts[FACT_LONGEST] = longest;
}

function learnSource(
  view: DataView,
  at: number,
  vid: number,
  ingress: number,
  limit: number,
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  counters: Float64Array,
  row: number,
): void {
  const top = view.getUint16(at + 6);
  const lo = view.getInt32(at + 8);
  if ((top | lo) === 0) return; // nobody's address: forwarded, not learned
  const outcome = learnMac(cells, head, learned, lo, top | (vid << 16), ingress, limit);
  if (outcome !== LEARN_REFRESHED) counters[row + learnColumn(outcome)]++;
}

/** Port, FLOOD or drop of the frame whose header is at `at`. */
function fateOf(
  view: DataView,
  at: number,
  vid: number,
  ingress: number,
  cells: Int32Array,
  head: Int32Array,
): number {
  const top = view.getUint16(at);
  const lo = view.getInt32(at + 2);
  if ((top & GROUP_BIT) !== 0) {
    const reserved = top === RESERVED_TOP && (lo & RESERVED_MASK) === RESERVED_LO;
    return reserved ? DROP_RESERVED : FLOOD;
  }
  const port = lookupMac(cells, head, lo, top | (vid << 16));
  return port === ingress ? DROP_SAME_PORT : port;
}

function learnColumn(outcome: number): number {
  if (outcome === LEARN_ADDED) return COUNT_LEARNED;
  if (outcome === LEARN_MOVED) return COUNT_MOVED;
  if (outcome === LEARN_LIMIT) return COUNT_LEARN_LIMIT;
  if (outcome === LEARN_OVERFLOW) return COUNT_LEARN_OVERFLOW;
  return COUNT_LEARNED;
}

/**
 * Sorts frames [0 .. count) into `lists[port]`, each in the order of the batch, and counts what
 * dies here. `listCounts` is zero for every port before and holds the lengths after; `touched` gets
 * the ports that have a list. Returns how many those are.
 */
export function bucketFrames(
  batch: FrameBatch,
  count: number,
  ingress: number,
  floodSets: Uint32Array,
  lists: readonly Int32Array[],
  listCounts: Int32Array,
  touched: Int32Array,
  counters: Float64Array,
  row: number,
): number {
  const { destination } = batch;
  let touchedCount = 0;
  // The list that the last frame went to stays in locals while frames of a run follow it.
  let current = FLOOD;
  let list = lists[0];
  let length = 0;
  for (let i = 0; i < count; i++) {
    const target = destination[i];
    if (target !== current) {
      if (current >= 0) listCounts[current] = length;
      current = FLOOD;
      if (target >= 0) {
        current = target;
        list = lists[target];
        length = listCounts[target];
        if (length === 0) touched[touchedCount++] = target;
      }
    }
    if (target >= 0) {
      list[length++] = i;
    } else if (target === FLOOD) {
      touchedCount = floodFrame(
        batch,
        i,
        ingress,
        floodSets,
        lists,
        listCounts,
        touched,
        touchedCount,
        counters,
        row,
      );
    } else {
      counters[row + DROP - target]++;
    }
  }
  if (current >= 0) listCounts[current] = length;
  return touchedCount;
}

/** Appends frame `i` to the list of every other port of its VLAN. Returns the new touchedCount. */
function floodFrame(
  batch: FrameBatch,
  i: number,
  ingress: number,
  floodSets: Uint32Array,
  lists: readonly Int32Array[],
  listCounts: Int32Array,
  touched: Int32Array,
  touchedCount: number,
  counters: Float64Array,
  row: number,
): number {
  const set = batch.vlan[i] * PORT_SET_WORDS;
  let copies = 0;
  for (let word = 0; word < PORT_SET_WORDS; word++) {
    let bits = floodSets[set + word];
    if (word === ingress >>> 5) bits &= ~(1 << (ingress & 31));
    while (bits !== 0) {
      const port = (word << 5) | (31 - Math.clz32(bits & -bits));
      bits &= bits - 1;
      const length = listCounts[port];
      if (length === 0) touched[touchedCount++] = port;
      lists[port][length] = i;
      listCounts[port] = length + 1;
      copies++;
    }
  }
  if ((batch.headerView.getUint8(batch.headerAt[i]) & 1) !== 0) counters[row + RX_MULTICAST]++;
  if (copies === 0) counters[row + DROP_NO_PORT]++;
  else counters[row + FLOOD_COPIES] += copies;
  return touchedCount;
}

/**
 * Judges frames of a port that reflects: what is no frame is dropped, all others go into `list`.
 * A tag is noted for its length alone. Returns how many.
 */
export function reflectFrames(
  batch: FrameBatch,
  count: number,
  list: Int32Array,
  counters: Float64Array,
  row: number,
  facts: Int32Array,
): number {
  const { frameLen, offload, gsoType, tagged, headerAt, headerView } = batch;
  let length = 0;
  let special = 0;
  for (let i = 0; i < count; i++) {
    const lenBytes = frameLen[i];
    tagged[i] = 0;
    if (
      lenBytes < MIN_FRAME_BYTES ||
      lenBytes > MAX_FRAME_BYTES ||
      (offload[i] & NEEDS_CSUM) !== 0 ||
      gsoType[i] !== 0
    ) {
      special = 1;
      const fate = checkFrame(batch, i);
      if (fate !== FLOOD) {
        counters[row + DROP - fate]++;
        continue;
      }
    }
    if (headerView.getUint16(headerAt[i] + TYPE_AT) === TYPE_CTAG) tagged[i] = TAG_PRESENT;
    list[length++] = i;
  }
  facts[FACT_SPECIAL] = special;
  return length;
}
