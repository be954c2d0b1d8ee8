/**
 * Work for a disk, as fio has it: patterns, sizes, depth, rate, and a check of every byte. Writes
 * name themselves (blk-pattern.hot.ts), the journal knows what was acknowledged (blk-journal.ts),
 * and with `verify` a last pass reads everything that is known.
 */
import { ConfigError } from '../base/errors.ts';
import { processCpuSeconds } from '../sys/index.ts';
import { VIRTIO_BLK_F_FLUSH } from '../wire/virtio-blk.ts';
import { hasFeature } from '../wire/virtio.ts';
import {
  MixChooser,
  OP_NAMES,
  OP_READ,
  OP_WRITE,
  SweepChooser,
  seededRandom,
  type BlkChooser,
  type BlkRegion,
  type OpName,
} from './blk-chooser.ts';
import type { BlkGuest } from './blk-driver.ts';
import { BlkJournal, type JournalReport } from './blk-journal.ts';
import { BlkRun, type RunLimits } from './blk-run.ts';
import type { LatencySummary } from './latency-histogram.ts';

export type BlkWorkloadOptions = {
  readonly guest: BlkGuest;
  /** Places one behind the other, or anywhere. Default random. */
  readonly random?: boolean;
  /** Of all requests but flushes; what is left are writes. Defaults 50, 0, 0. */
  readonly readPercent?: number;
  readonly discardPercent?: number;
  readonly zeroPercent?: number;
  /** A flush after so many writes; 0, the default: none. */
  readonly flushEvery?: number;
  /** Bytes of a request: one size, or multiples of the least up to the most. Default 4096. */
  readonly minBytes?: number;
  readonly maxBytes?: number;
  /** Of each queue; default 32. */
  readonly depth?: number;
  /** Whichever comes first; without any it takes a signal. */
  readonly seconds?: number;
  readonly requests?: number;
  readonly bytes?: number;
  /** Requests per second. */
  readonly rate?: number;
  /** Part of the disk; default: all of it. */
  readonly offset?: number;
  readonly sizeBytes?: number;
  /** Judge what is read, and read everything that is known at the end. */
  readonly verify?: boolean;
  /** Write every block once before the mix begins. */
  readonly fill?: boolean;
  readonly poll?: boolean;
  readonly seed?: number;
  readonly stallSeconds?: number;
  readonly signal?: AbortSignal;
};

export type OpReport = {
  readonly requests: number;
  readonly bytes: number;
  readonly errors: { readonly ioerr: number; readonly unsupported: number; readonly other: number };
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly latency: LatencySummary | null;
};

export type BlkReport = {
  readonly seed: number;
  /** Of the mix: from the first request to the last answer. */
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly iops: number;
  readonly bytesPerSecond: number;
  /** Kinds of request that were made. */
  readonly ops: Readonly<Partial<Record<OpName, OpReport>>>;
  readonly errors: number;
  readonly kicks: number;
  readonly calls: number;
  readonly reconnects: number;
  /** Requests that a later back-end was given again. */
  readonly repeated: number;
  /** Answers whose length was not what the request wrote. */
  readonly wrongLengths: number;
  /** Null unless `verify`. */
  readonly verify: JournalReport | null;
};

/**
 * Runs the workload. A wrong byte is in the report, not an error.
 * @throws ConfigError for sizes that do not fit the disk; VringError ERR_VRING_GUEST_STALLED; why
 *   the guest ended.
 */
export async function runBlkWorkload(options: BlkWorkloadOptions): Promise<BlkReport> {
  const { guest, verify = false } = options;
  const seed = options.seed ?? (Math.random() * 2 ** 32) >>> 0;
  const plan = checkPlan(options);
  const { region, minBytes } = plan;
  const journal = verify ? new BlkJournal({ ...region, unitBytes: minBytes }, seed) : null;
  const limits = limitsOf(options);
  const sweepLimits = { ...limits, seconds: Infinity, requests: Infinity, bytes: Infinity };
  const sweep = { ...sweepLimits, rate: Infinity, depth: Math.min(limits.depth, 16) };
  const sweepBytes = Math.floor(guest.requestBytes / minBytes) * minBytes;
  const phase = async (chooser: BlkChooser, phaseLimits: RunLimits): Promise<BlkRun> => {
    const run = new BlkRun(guest, chooser, journal, phaseLimits);
    await run.run();
    return run;
  };
  if (options.fill === true) await phase(new SweepChooser(OP_WRITE, region, sweepBytes), sweep);
  const before = counters(guest);
  const mix = new MixChooser(plan, region, seededRandom(seed), journal);
  const run = await phase(mix, limits);
  const after = counters(guest);
  if (journal !== null) {
    // Also after a signal: what was acknowledged until then is what the run was for.
    const last = { ...sweep, signal: null };
    await phase(new SweepChooser(OP_READ, region, sweepBytes), last);
  }
  const seconds = (run.lastDoneAt - run.startedAt) / 1000;
  const ops = opReports(run, seconds);
  const sum = (of: (op: OpReport) => number): number =>
    Object.values(ops).reduce((total, op) => total + of(op), 0);
  return {
    seed,
    seconds,
    cpuSeconds: after.cpuSeconds - before.cpuSeconds,
    iops: sum((op) => op.iops),
    bytesPerSecond: sum((op) => op.bytesPerSecond),
    ops,
    errors: sum(({ errors }) => errors.ioerr + errors.unsupported + errors.other),
    kicks: after.kicks - before.kicks,
    calls: after.calls - before.calls,
    reconnects: guest.reconnects,
    repeated: after.repeated,
    wrongLengths: after.wrongLengths,
    verify: journal?.report() ?? null,
  };
}

function opReports(run: BlkRun, seconds: number): Partial<Record<OpName, OpReport>> {
  const ops: Partial<Record<OpName, OpReport>> = {};
  for (const [i, { latency, statuses, bytes }] of run.tallies.entries()) {
    if (latency.count === 0) continue;
    const [, ioerr, unsupported, other] = statuses;
    ops[OP_NAMES[i]!] = {
      requests: latency.count,
      bytes,
      errors: { ioerr: ioerr!, unsupported: unsupported!, other: other! },
      iops: seconds > 0 ? latency.count / seconds : 0,
      bytesPerSecond: seconds > 0 ? bytes / seconds : 0,
      latency: latency.summary(),
    };
  }
  return ops;
}

function counters(guest: BlkGuest) {
  const sum = (of: (queue: BlkGuest['queues'][number]) => number): number =>
    guest.queues.reduce((total, queue) => total + of(queue), 0);
  return {
    cpuSeconds: processCpuSeconds(),
    kicks: sum(({ queue }) => queue.kicks),
    calls: sum(({ queue }) => queue.calls),
    repeated: sum(({ repeated }) => repeated),
    wrongLengths: sum(({ wrongLengths }) => wrongLengths),
  };
}

function limitsOf(options: BlkWorkloadOptions): RunLimits {
  return {
    depth: options.depth ?? 32,
    seconds: options.seconds ?? Infinity,
    requests: options.requests ?? Infinity,
    bytes: options.bytes ?? Infinity,
    rate: options.rate ?? Infinity,
    poll: options.poll ?? false,
    stallSeconds: options.stallSeconds ?? 30,
    signal: options.signal ?? null,
  };
}

/** Sizes that fit the device, each other and the region. */
function checkPlan(options: BlkWorkloadOptions) {
  const { guest } = options;
  const { config } = guest;
  const { minBytes = 4096, maxBytes = minBytes, offset = 0 } = options;
  const block = config.blockBytes;
  const wrong = (path: string, problem: string): never => {
    throw new ConfigError(path, problem);
  };
  if (minBytes % block !== 0 || minBytes <= 0) {
    wrong('--block-size', `${minBytes} is no multiple of the disk's blocks of ${block} bytes`);
  }
  if (maxBytes % minBytes !== 0 || maxBytes < minBytes) {
    wrong('--block-size', `${maxBytes} is no multiple of the least size, ${minBytes}`);
  }
  if (maxBytes > guest.requestBytes) {
    wrong('--block-size', `${maxBytes} is more than a request holds, ${guest.requestBytes}`);
  }
  if (offset % minBytes !== 0 || offset < 0 || offset >= config.capacityBytes) {
    const places = `a multiple of ${minBytes} within the disk of ${config.capacityBytes} bytes`;
    wrong('--offset', `${offset} is not ${places}`);
  }
  const left = config.capacityBytes - offset;
  const asked = options.sizeBytes ?? left;
  if (asked > left) wrong('--size', `${asked} is more than the disk has from --offset on, ${left}`);
  const sizeBytes = Math.floor(asked / minBytes) * minBytes;
  if (sizeBytes < maxBytes) wrong('--size', `${asked} is less than one request of ${maxBytes}`);
  const { readPercent = 50, discardPercent = 0, zeroPercent = 0 } = options;
  if (readPercent + discardPercent + zeroPercent > 100) {
    wrong('--reads', 'reads, discards and zeroes are more than 100 % together');
  }
  const writes = readPercent < 100 || options.fill === true;
  if (config.readOnly && writes) wrong('--reads', 'the disk is read-only, and only 100 fits it');
  if (config.zones !== null && writes) {
    wrong('--reads', 'the disk is zoned, and only 100 fits it; see verify-zones');
  }
  const region: BlkRegion = { offset, sizeBytes };
  const alignment = config.discard?.alignmentBytes ?? block;
  return {
    region,
    minBytes,
    maxBytes,
    random: options.random ?? true,
    readPercent,
    discardPercent,
    zeroPercent,
    flushEvery: hasFeature(guest.features, VIRTIO_BLK_F_FLUSH) ? (options.flushEvery ?? 0) : 0,
    // With a journal, a discard covers whole units, too.
    discardAlignment: leastCommonMultiple(alignment, minBytes),
  };
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
