/**
 * Judges received test frames: which records are new, early, late, repeated or damaged. Layout of
 * the records: `test-frame.ts`. All state is typed arrays of the caller; nothing is allocated.
 */
const MAGIC = 0x5256;
const RECORD_BYTES = 20;
const AT_BYTES = 2;
const AT_FLOW_RUN = 4;
const AT_SEQUENCE = 8;
const AT_STAMP = 12;
const AT_CHECK = 16;
const FLOWS = 1024;

const TYPE_VLAN = 0x0081; // as little-endian reads see them
const TYPE_IPV4 = 0x0008;
const TYPE_IPV6 = 0xdd86;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

/** The pattern of `test-frame.ts` in words: its bytes repeat after 256. */
const PATTERN = new Int32Array(64);
for (let i = 0; i < 64; i++) {
  const byte = i * 28 + 13;
  PATTERN[i] =
    (byte & 0xff) |
    (((byte + 7) & 0xff) << 8) |
    (((byte + 14) & 0xff) << 16) |
    (((byte + 21) & 0xff) << 24);
}

/** Records remembered per flow, to tell late ones from repeated ones. */
export const SINK_WINDOW = 1024;
const WINDOW = 1024;
const WORDS = 32;

// Cells of the sink's counters, doubles.
export const SINK_FRAMES = 0; //    frames looked at
export const SINK_BYTES = 1; //     of them, Ethernet header included
export const SINK_RECORDS = 2; //   good records
export const SINK_LOST = 3; //      numbers skipped and not seen late
export const SINK_REORDERED = 4; // seen late
export const SINK_REPEATED = 5; //  seen twice
export const SINK_STALE = 6; //     so late that it cannot be told
export const SINK_CORRUPT = 7; //   the check or the pattern is wrong
export const SINK_FOREIGN = 8; //   not ours
export const SINK_VERIFIED = 9; //  records whose whole pattern was compared
export const SINK_LATENCY_COUNT = 10;
export const SINK_LATENCY_SUM = 11; // microseconds
export const SINK_LATENCY_MAX = 12;
export const SINK_COUNTERS = 13;

/**
 * Judges frames `0 .. count)`. Returns how many records were good.
 */
export function checkFrames(
  arena: DataView,
  frameOffset: Float64Array, // arena offset of each frame's Ethernet header
  frameLen: Int32Array,
  count: number,
  flowRun: Int32Array, //      per flow: -1, or the run that is being received
  flowNext: Uint32Array, //    per flow: the sequence that is due
  flowSeen: Int32Array, //     per flow: WINDOW bits
  counters: Float64Array,
  verifyEvery: number, //      compare the whole pattern of one record in so many; 0: never
  now: number, //              microseconds, u32
): number {
  let good = 0;
  let bytes = 0;
  for (let i = 0; i < count; i++) {
    const start = frameOffset[i];
    const end = start + frameLen[i];
    bytes += frameLen[i];
    let at = payloadOf(arena, start, end);
    if (at < 0) {
      counters[SINK_FOREIGN]++;
      continue;
    }
    while (at + RECORD_BYTES <= end) {
      const recordBytes = arena.getUint16(at + AT_BYTES, true);
      if (arena.getUint16(at, true) !== MAGIC || recordBytes < RECORD_BYTES) {
        counters[SINK_FOREIGN]++;
        break;
      }
      const sequence = arena.getInt32(at + AT_SEQUENCE, true);
      const stamp = arena.getInt32(at + AT_STAMP, true);
      const flowAndRun = arena.getInt32(at + AT_FLOW_RUN, true);
      let check = Math.imul(sequence ^ 0x1e3779b1, 0x05ebca6b);
      check ^= Math.imul(stamp ^ flowAndRun, 0x42b2ae35);
      check ^= recordBytes ^ (check >>> 15);
      const flow = flowAndRun & 0xffff;
      if (
        check !== arena.getInt32(at + AT_CHECK, true) ||
        at + recordBytes > end ||
        flow >= FLOWS
      ) {
        counters[SINK_CORRUPT]++;
        break;
      }
      if (verifyEvery !== 0 && (sequence >>> 0) % verifyEvery === 0) {
        if (!patternOk(arena, at, recordBytes)) {
          counters[SINK_CORRUPT]++;
          break;
        }
        counters[SINK_VERIFIED]++;
        noteLatency(counters, (now - stamp) >>> 0);
      }
      const run = flowAndRun >>> 16;
      if (flowRun[flow] === run && ((flowNext[flow] - sequence) | 0) === 0) {
        flowNext[flow] = sequence + 1;
        const word = flow * WORDS + ((sequence >>> 5) & (WORDS - 1));
        const bit = sequence & 31;
        // The first number of a word forgets what the word said one window ago.
        flowSeen[word] = bit === 0 ? 1 : flowSeen[word] | (1 << bit);
      } else {
        noteOutOfOrder(flowRun, flowNext, flowSeen, counters, flow, run, sequence);
      }
      good++;
      at += recordBytes;
    }
  }
  counters[SINK_FRAMES] += count;
  counters[SINK_BYTES] += bytes;
  counters[SINK_RECORDS] += good;
  return good;
}

/** Where the UDP or TCP payload starts; -1 when the frame is neither. */
function payloadOf(arena: DataView, start: number, end: number): number {
  let at = start + 14;
  if (at + 8 > end) return -1;
  let type = arena.getUint16(start + 12, true);
  if (type === TYPE_VLAN) {
    type = arena.getUint16(start + 16, true);
    at += 4;
  }
  let protocol = 0;
  if (type === TYPE_IPV4 && at + 20 <= end) {
    protocol = arena.getUint8(at + 9);
    at += (arena.getUint8(at) & 15) * 4;
  } else if (type === TYPE_IPV6 && at + 40 <= end) {
    protocol = arena.getUint8(at + 6);
    at += 40;
  } else {
    return -1;
  }
  if (protocol === PROTOCOL_UDP) return at + 8 + RECORD_BYTES <= end ? at + 8 : -1;
  if (protocol === PROTOCOL_TCP) return at + 20 + RECORD_BYTES <= end ? at + 20 : -1;
  return -1;
}

function patternOk(arena: DataView, at: number, bytes: number): boolean {
  const words = bytes & ~3;
  let i = RECORD_BYTES; // a multiple of four
  for (; i < words; i += 4) {
    if (arena.getInt32(at + i, true) !== PATTERN[(i >> 2) & 63]) return false;
  }
  for (; i < bytes; i++) {
    if (arena.getUint8(at + i) !== ((i * 7 + 13) & 0xff)) return false;
  }
  return true;
}

function noteLatency(counters: Float64Array, micros: number): void {
  if (micros > 60_000_000) return; // the other side's clock is not ours
  counters[SINK_LATENCY_COUNT]++;
  counters[SINK_LATENCY_SUM] += micros;
  if (micros > counters[SINK_LATENCY_MAX]) counters[SINK_LATENCY_MAX] = micros;
}

/** A record that is not the next one: a new run, a gap, or somebody from the past. */
function noteOutOfOrder(
  flowRun: Int32Array,
  flowNext: Uint32Array,
  flowSeen: Int32Array,
  counters: Float64Array,
  flow: number,
  run: number,
  sequence: number,
): void {
  const first = flow * WORDS;
  const mask = 1 << (sequence & 31);
  const word = first + ((sequence >>> 5) & (WORDS - 1));
  if (flowRun[flow] !== run) {
    flowRun[flow] = run;
    flowSeen.fill(-1, first, first + WORDS); // what came before the start is not missed
    flowSeen[word] = mask | (mask - 1);
    flowNext[flow] = sequence + 1;
    return;
  }
  const ahead = (sequence - flowNext[flow]) | 0;
  if (ahead < 0) {
    if (-ahead > WINDOW - 32) {
      counters[SINK_STALE]++;
    } else if ((flowSeen[word] & mask) !== 0) {
      counters[SINK_REPEATED]++;
    } else {
      flowSeen[word] |= mask;
      counters[SINK_REORDERED]++;
      counters[SINK_LOST]--;
    }
    return;
  }
  counters[SINK_LOST] += ahead;
  const clear = ahead < WINDOW ? ahead : WINDOW;
  for (let i = 0; i <= clear; i++) {
    const skipped = flowNext[flow] + ahead - clear + i;
    flowSeen[first + ((skipped >>> 5) & (WORDS - 1))] &= ~(1 << (skipped & 31));
  }
  flowSeen[word] |= mask;
  flowNext[flow] = sequence + 1;
}
