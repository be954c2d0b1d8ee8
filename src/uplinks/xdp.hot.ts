/**
 * Between frames in columns and the rings of an XDP socket. Indexes run freely and are compared by
 * difference; the kernel's are read once per batch. Addresses are offsets in our memory, below
 * 2^31: their upper words are zero and stay so.
 */
import type { CopyPlan } from '../sys/arena.ts';
import type { FrameBatch } from '../switch/frame-batch.ts';

const SLOT_BYTES = 96; //   HEADER_SLOT_BYTES
const SLOT_START = 16; //   HEADER_SLOT_START
const COPY_BYTES = 64; //   HEADER_COPY_BYTES
const FRAME_MAX = 65553; // MAX_FRAME_BYTES
const FRAME_MIN = 14; //    MIN_FRAME_BYTES

const HEADER_AT = 0; //     columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

const DESC_WORDS = 4; //    struct xdp_desc: address (2 words), length, options
const CONTINUED = 1; //     XDP_PKT_CONTD

/** One ring as words. */
export type XdpRing = {
  readonly words: Int32Array;
  /** Word indexes. */
  readonly producerAt: number;
  readonly consumerAt: number;
  readonly flagsAt: number;
  readonly descAt: number;
  readonly mask: number;
};

/** The receive side: what was taken from the rx ring and is not given back yet. */
export class XdpReceiver {
  readonly umemAt: number;
  readonly chunkBytes: number;
  /** Our consumer of the rx ring, and the producer of the fill ring. */
  consumer = 0;
  filled: number;
  /** Descriptors of the last batch. */
  taken = 0;
  errors = 0;

  constructor(umemAt: number, chunkBytes: number, filled: number) {
    this.umemAt = umemAt;
    this.chunkBytes = chunkBytes;
    this.filled = filled;
  }
}

/**
 * Appends the next frames to an empty batch; `available` descriptors are there. Frames that make no
 * sense are left out and counted; `receiver.taken` counts their descriptors, too.
 */
export function readDescriptors(
  ring: XdpRing,
  receiver: XdpReceiver,
  available: number,
  batch: FrameBatch,
  plan: CopyPlan, // empty; room for a range per frame
): number {
  const { words, descAt, mask } = ring;
  const { umemAt, chunkBytes } = receiver;
  const { rows, segOffset, segLen, capacity, segCapacity, headersAt } = batch;
  const { ranges, capacity: planCapacity } = plan;
  const first = receiver.consumer;
  let plain = 1;
  let segments = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  let d = 0;
  let i = 0;
  while (d < available && i < capacity && segments < segCapacity) {
    const word = descAt + ((first + d) & mask) * DESC_WORDS;
    const address = words[word];
    const lenBytes = words[word + 2];
    const end = (address & (chunkBytes - 1)) + lenBytes;
    if (words[word + 3] !== 0) {
      const chain = chainLength(words, descAt, mask, first + d, available - d);
      if (chain === 0) break; // its end is not there yet
      if (segments > 0 && chain > segCapacity - segments) break;
      let whole = 0;
      if (chain <= segCapacity) {
        whole = readChain(ring, receiver, first + d, chain, batch, i, segments, plan);
      }
      d += chain;
      if (whole === 0) {
        receiver.errors++;
        continue;
      }
      plain = 0;
      segments += rows[i + SEG_COUNT];
      bytes += whole;
      if (whole > longest) longest = whole;
      if (whole < shortest) shortest = whole;
      i++;
      continue;
    }
    d++;
    if (address < 0 || lenBytes < FRAME_MIN || end > chunkBytes) {
      receiver.errors++;
      continue;
    }
    const copied = lenBytes < COPY_BYTES ? lenBytes : COPY_BYTES;
    ranges[i] = umemAt + address;
    ranges[i + planCapacity] = headersAt + i * SLOT_BYTES + SLOT_START;
    ranges[i + 2 * planCapacity] = copied;
    rows[i + HEADER_AT] = i * SLOT_BYTES + SLOT_START;
    rows[i + HEADER_LEN] = copied;
    rows[i + FRAME_LEN] = lenBytes;
    rows[i + SEG_FIRST] = segments;
    rows[i + SEG_COUNT] = 0;
    rows[i + OFFLOAD] = 0;
    rows[i + GSO_TYPE] = 0;
    if (lenBytes > copied) {
      rows[i + SEG_COUNT] = 1;
      segOffset[segments] = umemAt + address + copied;
      segLen[segments++] = lenBytes - copied;
    }
    bytes += lenBytes;
    if (lenBytes > longest) longest = lenBytes;
    if (lenBytes < shortest) shortest = lenBytes;
    i++;
  }
  receiver.taken = d;
  batch.count = i;
  batch.segments = segments;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  batch.plain = plain;
  plan.count = i;
  plan.run();
  return i;
}

/** Descriptors of the frame that starts here, or 0 when its last one is not among `available`. */
function chainLength(
  words: Int32Array,
  descAt: number,
  mask: number,
  first: number,
  available: number,
): number {
  for (let d = 0; d < available; d++) {
    if ((words[descAt + ((first + d) & mask) * DESC_WORDS + 3] & CONTINUED) === 0) return d + 1;
  }
  return 0;
}

/** A frame of several chunks as frame `i`. Returns its length, or 0 when it makes no sense. */
function readChain(
  ring: XdpRing,
  receiver: XdpReceiver,
  first: number,
  count: number,
  batch: FrameBatch,
  i: number,
  segFirst: number,
  plan: CopyPlan,
): number {
  const { words, descAt, mask } = ring;
  const { umemAt, chunkBytes } = receiver;
  const { rows, segOffset, segLen } = batch;
  let segments = segFirst;
  let bytes = 0;
  let copied = 0;
  for (let d = 0; d < count; d++) {
    const word = descAt + ((first + d) & mask) * DESC_WORDS;
    const address = words[word];
    const lenBytes = words[word + 2];
    if (address < 0 || lenBytes < 0) return 0;
    if ((address & (chunkBytes - 1)) + lenBytes > chunkBytes) return 0;
    if (d === 0) {
      // Linux fills a chunk before it begins the next: the header is in the first.
      if (lenBytes < COPY_BYTES) return 0;
      copied = COPY_BYTES;
      plan.ranges[i] = umemAt + address;
      plan.ranges[i + plan.capacity] = batch.headersAt + i * SLOT_BYTES + SLOT_START;
      plan.ranges[i + 2 * plan.capacity] = copied;
    }
    const skipped = d === 0 ? copied : 0;
    segOffset[segments] = umemAt + address + skipped;
    segLen[segments++] = lenBytes - skipped;
    bytes += lenBytes;
  }
  if (bytes > FRAME_MAX) return 0;
  rows[i + HEADER_AT] = i * SLOT_BYTES + SLOT_START;
  rows[i + HEADER_LEN] = copied;
  rows[i + FRAME_LEN] = bytes;
  rows[i + SEG_FIRST] = segFirst;
  rows[i + SEG_COUNT] = segments - segFirst;
  rows[i + OFFLOAD] = 0;
  rows[i + GSO_TYPE] = 0;
  return bytes;
}

/**
 * Puts the chunks of the last batch into the fill ring and publishes both. There is room: as many
 * chunks are about as the fill ring has entries.
 */
export function refill(rx: XdpRing, fill: XdpRing, receiver: XdpReceiver): void {
  const { words, descAt, mask } = rx;
  const { words: fillWords, descAt: fillAt, mask: fillMask } = fill;
  const { taken, consumer, filled } = receiver;
  const chunkMask = ~(receiver.chunkBytes - 1);
  for (let d = 0; d < taken; d++) {
    const address = words[descAt + ((consumer + d) & mask) * DESC_WORDS];
    fillWords[fillAt + ((filled + d) & fillMask) * 2] = address & chunkMask;
  }
  receiver.consumer = (consumer + taken) | 0;
  receiver.filled = (filled + taken) | 0;
  receiver.taken = 0;
  Atomics.store(fillWords, fill.producerAt, receiver.filled);
  Atomics.store(words, rx.consumerAt, receiver.consumer);
}

/** The transmit side: a stack of free chunks, and our indexes. */
export class XdpSender {
  readonly umemAt: number;
  readonly chunkBytes: number;
  readonly free: Int32Array;
  freeCount: number;
  producer = 0;
  /** Our consumer of the completion ring. */
  completed = 0;
  /** Something was written that the kernel was not told of. */
  isDirty = false;

  /** `free`: offsets of all its chunks. */
  constructor(umemAt: number, chunkBytes: number, free: Int32Array) {
    this.umemAt = umemAt;
    this.chunkBytes = chunkBytes;
    this.free = free;
    this.freeCount = free.length;
  }
}

/** Takes back the chunks of frames that were sent. */
export function reapCompletions(ring: XdpRing, sender: XdpSender): void {
  const { words, descAt, mask } = ring;
  const done = (Atomics.load(words, ring.producerAt) - sender.completed) | 0;
  if (done <= 0) return;
  const { free, completed } = sender;
  const chunkMask = ~(sender.chunkBytes - 1);
  let { freeCount } = sender;
  for (let d = 0; d < done && freeCount < free.length; d++) {
    free[freeCount++] = words[descAt + ((completed + d) & mask) * 2] & chunkMask;
  }
  sender.freeCount = freeCount;
  sender.completed = (completed + done) | 0;
  Atomics.store(words, ring.consumerAt, sender.completed);
}

/**
 * Copies frames `list[0 .. count)` into free chunks and the tx ring, which `publish` shows to the
 * kernel. Returns how many; with fewer than `count` there are no chunks left. A ring entry is free
 * for every free chunk: there are as many.
 */
export function writeDescriptors(
  ring: XdpRing,
  sender: XdpSender,
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  plan: CopyPlan, // empty
): number {
  const { words, descAt, mask } = ring;
  const { umemAt, chunkBytes, free } = sender;
  const { rows, segOffset, segLen, headersAt } = batch;
  const { ranges, capacity } = plan;
  let { freeCount, producer } = sender;
  let n = 0;
  let k = 0;
  for (; k < count; k++) {
    const i = list[k];
    const frameLen = rows[i + FRAME_LEN];
    const segments = rows[i + SEG_COUNT];
    const chunks = frameLen <= chunkBytes ? 1 : Math.ceil(frameLen / chunkBytes);
    if (chunks > freeCount) break;
    if (n + segments + 1 + chunks > capacity) {
      plan.count = n;
      plan.run();
      n = 0;
    }
    let word = descAt + (producer & mask) * DESC_WORDS;
    let chunk = free[--freeCount];
    let used = rows[i + HEADER_LEN];
    ranges[n] = headersAt + rows[i + HEADER_AT];
    ranges[n + capacity] = umemAt + chunk;
    ranges[n + 2 * capacity] = used;
    n++;
    const first = rows[i + SEG_FIRST];
    for (let s = first; s < first + segments; s++) {
      let from = segOffset[s];
      let left = segLen[s];
      while (left > chunkBytes - used) {
        const part = chunkBytes - used;
        if (part > 0) {
          ranges[n] = from;
          ranges[n + capacity] = umemAt + chunk + used;
          ranges[n + 2 * capacity] = part;
          n++;
          from += part;
          left -= part;
        }
        words[word] = chunk;
        words[word + 2] = chunkBytes;
        words[word + 3] = CONTINUED;
        producer = (producer + 1) | 0;
        word = descAt + (producer & mask) * DESC_WORDS;
        chunk = free[--freeCount];
        used = 0;
      }
      ranges[n] = from;
      ranges[n + capacity] = umemAt + chunk + used;
      ranges[n + 2 * capacity] = left;
      n++;
      used += left;
    }
    words[word] = chunk;
    words[word + 2] = used;
    words[word + 3] = 0;
    producer = (producer + 1) | 0;
  }
  sender.freeCount = freeCount;
  sender.producer = producer;
  if (k > 0) sender.isDirty = true;
  plan.count = n;
  plan.run();
  return k;
}

/** The kernel sees what was written. */
export function publish(ring: XdpRing, sender: XdpSender): void {
  Atomics.store(ring.words, ring.producerAt, sender.producer);
  sender.isDirty = false;
}
