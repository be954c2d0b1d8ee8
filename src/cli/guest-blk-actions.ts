/** What the commands of `vring guest blk` do. Each returns the exit status. */
import { readFileSync, writeFileSync } from 'node:fs';
import { ConfigError } from '../base/errors.ts';
import {
  BlkDisk,
  connectBlkGuest,
  parseBackendSpec,
  parseBlkFeatures,
  runBlkWorkload,
  type BackendSpec,
  type BlkGuest,
  type BlkReport,
  type BlkWorkloadOptions,
} from '../guest/index.ts';
import { VIRTIO_ID_BLOCK, featureNames } from '../wire/virtio.ts';
import { fileProblem } from './explain.ts';
import { act, appendBytes, verifyZones, zones } from './guest-zones.ts';
import { complain, print, printJson, printable, short } from './output.ts';

/** Options of `guest blk` and of all its commands; commander filled in the defaults. */
export type BlkCommandOptions = {
  backend?: string;
  socket?: string;
  queues: number;
  ring: 'split' | 'packed';
  ringSize: number;
  features?: string;
  requestSize: number;
  segmentSize?: number;
  hugePages: boolean;
  readOnly: boolean;
  reconnect: boolean;
  json: boolean;
  // read, write, discard, zero
  offset: number;
  bytes: number;
  file: string;
  out?: string;
  unmap: boolean;
  // verify, bench
  sequential: boolean;
  reads: number;
  discards: number;
  zeroes: number;
  flushEvery: number;
  blockSize: [number, number];
  depth: number;
  seconds?: number;
  requests?: number;
  rate?: number;
  size?: number;
  fill?: boolean;
  poll: boolean;
  stall: number;
  seed?: number;
  // zoned disks
  all?: boolean;
  count?: number;
  appends: number;
  zones: number;
};

type Action = (disk: BlkDisk, options: BlkCommandOptions, signal: AbortSignal) => Promise<number>;

const CHANGES = new Set(
  'write discard zero erase append open close finish reset verify-zones'.split(' '),
);

const EXIT_FAILURE = 1;
const DEFAULT_SECONDS = 5;

const ACTIONS: Readonly<Record<string, Action>> = {
  info,
  id,
  read,
  write,
  flush,
  discard,
  zero,
  erase,
  lifetime,
  zones,
  append,
  open: act('open'),
  close: act('close'),
  finish: act('finish'),
  reset: act('reset'),
  'verify-zones': verifyZones,
  verify: (disk, options, signal) => work(disk, options, signal, true),
  bench: (disk, options, signal) => work(disk, options, signal, false),
};

/** Starts a guest, lets the command work with it until it ends or a signal comes. */
export async function runBlkCommand(name: string, options: BlkCommandOptions): Promise<number> {
  checkUsage(name, options);
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  process.once('SIGTERM', onSignal).once('SIGINT', onSignal);
  try {
    const guest = await connect(options, stop.signal);
    guest.onLink = (event) => {
      const gone = 'the back-end is gone, waiting for the next one';
      const text = event.kind === 'lost' ? gone : 'the back-end is back';
      const took = event.kind === 'lost' ? '' : ` after ${event.milliseconds.toFixed(0)} ms`;
      complain(text + took);
      const reason = event.kind === 'lost' ? { reason: event.reason?.message ?? null } : {};
      if (options.json) printJson({ event: event.kind, ...event, ...reason }, 'line');
    };
    try {
      return await ACTIONS[name]!(new BlkDisk(guest), options, stop.signal);
    } catch (error) {
      throw guest.failure ?? error; // what follows from a failure is not the reason
    } finally {
      await guest.close();
    }
  } finally {
    process.off('SIGTERM', onSignal).off('SIGINT', onSignal);
  }
}

function checkUsage(name: string, options: BlkCommandOptions): void {
  const { readOnly, reads, fill, ring, ringSize } = options;
  const changes = CHANGES.has(name);
  const works = ['verify', 'bench'].includes(name);
  if (readOnly && (changes || (works && (reads < 100 || fill === true)))) {
    const hint = works ? '; --reads 100 without --fill does not' : '';
    throw new ConfigError('--read-only', `${name} would change the disk${hint}`);
  }
  if (ring === 'split' && !Number.isInteger(Math.log2(ringSize))) {
    throw new ConfigError('--ring-size', `${ringSize} is no power of two`);
  }
  for (const [path, value] of [
    ['--request-size', options.requestSize],
    ['--segment-size', options.segmentSize ?? 512],
  ] as const) {
    if (value >= 512 && value % 512 === 0 && value <= 2 ** 26) continue;
    throw new ConfigError(path, `${value} is no multiple of 512 up to 64M`);
  }
}

function connect(options: BlkCommandOptions, signal: AbortSignal): Promise<BlkGuest> {
  const { features, segmentSize = null } = options;
  const most = options.blockSize?.[1] ?? 0;
  return connectBlkGuest({
    backend: specOf(options),
    signal,
    queues: options.queues,
    ringSize: options.ringSize,
    packed: options.ring === 'packed',
    requestBytes: Math.max(options.requestSize, most),
    segmentBytes: segmentSize,
    hugePages: options.hugePages,
    reconnect: options.reconnect,
    ...(features === undefined ? {} : { features: parseBlkFeatures(features, '--features') }),
  });
}

function specOf({ backend, socket }: BlkCommandOptions): BackendSpec {
  if ((backend === undefined) === (socket === undefined)) {
    const text = 'say which back-end: either --backend vhost-user:PATH or --socket PATH';
    throw new ConfigError('--backend', text);
  }
  if (backend !== undefined) return parseBackendSpec(backend, '--backend');
  return { kind: 'vhost-user', socket: socket!, server: false };
}

async function info(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { guest } = disk;
  const names = (bits: bigint) => featureNames(bits, VIRTIO_ID_BLOCK);
  const { config, requestBytes } = guest;
  const value = {
    backend: guest.backend.description,
    offered: names(guest.offered),
    negotiated: names(guest.features),
    ring: guest.packed ? 'packed' : 'split',
    queues: guest.queues.length,
    requestBytes,
    inflight: guest.hasInflight,
    config,
  };
  const { discard: discards, writeZeroes: zeroes, zones: zoned } = config;
  show(options, value, [
    `back-end     ${value.backend}`,
    `size         ${config.capacityBytes} bytes in blocks of ${config.blockBytes}` +
      (config.readOnly ? ', read-only' : ''),
    `offered      ${value.offered.join(' ')}`,
    `negotiated   ${value.negotiated.join(' ')}`,
    `rings        ${value.queues} ${value.ring} of ${options.ringSize} descriptors; the disk has ` +
      `${config.queues ?? 1}`,
    `requests     up to ${requestBytes} bytes; segments ${config.segMax ?? 'as many as fit'}`,
    `discard      ${discards === null ? 'no' : `up to ${discards.maxBytes} bytes`}`,
    `zeroes       ${zeroes === null ? 'no' : `up to ${zeroes.maxBytes} bytes`}`,
    `zones        ${zoned === null ? 'no' : `of ${zoned.zoneBytes} bytes: see \`zones\``}`,
    `inflight     ${value.inflight ? 'a killed back-end remembers what it had begun' : 'no'}`,
  ]);
  return 0;
}

async function id(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const serial = await disk.getId();
  show(options, { id: serial }, [printable(serial)]);
  return 0;
}

async function read(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { offset, bytes: lenBytes, out } = options;
  const bytes = await disk.read(offset, lenBytes);
  if (out === undefined) process.stdout.write(bytes);
  else {
    try {
      writeFileSync(out, bytes);
    } catch (cause) {
      throw new ConfigError('--out', `${out}: ${fileProblem(cause)}`, { cause });
    }
  }
  return 0;
}

async function write(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { file, offset } = options;
  const bytes = fileBytes(file);
  const { blockBytes } = disk.guest.config;
  if (bytes.length % blockBytes !== 0) {
    const text = `${file} has ${bytes.length} bytes; multiples of ${blockBytes} can be written`;
    throw new ConfigError('--file', text);
  }
  await disk.write(offset, bytes);
  await disk.flush();
  show(options, { offset, bytes: bytes.length }, [`${bytes.length} bytes written at ${offset}`]);
  return 0;
}

function fileBytes(file: string): Uint8Array {
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new ConfigError('--file', `${file}: ${fileProblem(cause)}`, { cause });
  }
}

async function append(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  return appendBytes(disk, fileBytes(options.file), options);
}

async function flush(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  await disk.flush();
  show(options, { flushed: true }, ['flushed']);
  return 0;
}

async function discard(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { offset, bytes } = options;
  await disk.discard(offset, bytes);
  show(options, { offset, bytes }, [`${bytes} bytes discarded at ${offset}`]);
  return 0;
}

async function zero(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { offset, bytes, unmap } = options;
  await disk.writeZeroes(offset, bytes, unmap);
  show(options, { offset, bytes }, [`${bytes} bytes of zeroes at ${offset}`]);
  return 0;
}

async function erase(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const { offset, bytes } = options;
  await disk.secureErase(offset, bytes);
  show(options, { offset, bytes }, [`${bytes} bytes erased at ${offset}`]);
  return 0;
}

const EOL_STATES = ['not said', 'normal', 'warning: 80 % of spare blocks are used', 'urgent: 90 %'];

async function lifetime(disk: BlkDisk, options: BlkCommandOptions): Promise<number> {
  const wear = await disk.getLifetime();
  const { preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB } = wear;
  const used = (tenths: number): string =>
    tenths === 0 ? 'not said' : tenths > 10 ? 'all of it and more' : `up to ${tenths * 10} %`;
  show(options, wear, [
    `spare blocks  ${EOL_STATES[preEolInfo] ?? preEolInfo}`,
    `life used     type A ${used(deviceLifetimeEstTypA)}, type B ${used(deviceLifetimeEstTypB)}`,
  ]);
  return 0;
}

async function work(
  disk: BlkDisk,
  options: BlkCommandOptions,
  signal: AbortSignal,
  isVerified: boolean,
): Promise<number> {
  const seed = options.seed ?? (Math.random() * 2 ** 32) >>> 0;
  complain(`seed ${seed}`); // before anything can go wrong
  const { seconds, requests, bytes, rate, size } = options;
  const ends = seconds !== undefined || requests !== undefined || bytes !== undefined;
  const limits: Partial<BlkWorkloadOptions> = {
    ...(ends ? {} : { seconds: DEFAULT_SECONDS }),
    ...(seconds === undefined ? {} : { seconds }),
    ...(requests === undefined ? {} : { requests }),
    ...(bytes === undefined ? {} : { bytes }),
    ...(rate === undefined ? {} : { rate }),
    ...(size === undefined ? {} : { sizeBytes: size }),
  };
  const report = await runBlkWorkload({
    ...limits,
    guest: disk.guest,
    seed,
    signal,
    verify: isVerified,
    fill: options.fill ?? false,
    random: !options.sequential,
    readPercent: options.reads,
    discardPercent: options.discards,
    zeroPercent: options.zeroes,
    flushEvery: options.flushEvery,
    minBytes: options.blockSize[0],
    maxBytes: options.blockSize[1],
    depth: options.depth,
    offset: options.offset,
    poll: options.poll,
    stallSeconds: options.stall,
  });
  show(options, { event: 'end', ...report }, reportLines(report));
  const wrong = Object.values(report.verify?.wrong ?? {}).reduce((sum, count) => sum + count, 0);
  if (wrong > 0) complain(`${wrong} blocks are not what was acknowledged`);
  if (report.errors > 0) complain(`${report.errors} requests were answered with an error`);
  return wrong > 0 || report.errors > 0 ? EXIT_FAILURE : 0;
}

function reportLines(report: BlkReport): string[] {
  const us = (value: number): string => value.toFixed(0);
  const lines = [
    `${short(report.iops)} IOPS, ${short(report.bytesPerSecond)}B/s in ` +
      `${report.seconds.toFixed(2)} s`,
  ];
  for (const [name, op] of Object.entries(report.ops)) {
    const { latency, errors } = op;
    const times =
      latency === null
        ? ''
        : `; us p50 ${us(latency.p50Us)} p99 ${us(latency.p99Us)} ` +
          `p99.9 ${us(latency.p999Us)} max ${us(latency.maxUs)}`;
    const { ioerr, unsupported, other } = errors;
    const bad = ioerr + unsupported + other;
    const what = `; errors ${ioerr} I/O, ${unsupported} unsupported, ${other} other`;
    lines.push(
      `${name.padEnd(8)} ${op.requests} requests, ${short(op.iops)} IOPS, ` +
        `${short(op.bytesPerSecond)}B/s${times}${bad > 0 ? what : ''}`,
    );
  }
  lines.push(
    `CPU ${report.cpuSeconds.toFixed(2)} s, kicks ${report.kicks}, calls ${report.calls}, ` +
      `reconnects ${report.reconnects}, repeated ${report.repeated}, ` +
      `wrong lengths ${report.wrongLengths}`,
  );
  const { verify } = report;
  if (verify === null) return lines;
  const { lost, stray, torn, misplaced, corrupt } = verify.wrong;
  lines.push(
    `blocks compared ${verify.checked}, unknown ${verify.unjudged}; lost ${lost}, ` +
      `stray ${stray}, torn ${torn}, misplaced ${misplaced}, corrupt ${corrupt}`,
  );
  for (const { kind, offset, wrongAt, expected, found } of verify.examples) {
    const place = wrongAt > 0 ? ` byte ${wrongAt}` : '';
    lines.push(`  ${kind} at ${offset}${place}: ${expected} was acknowledged, ${found} is there`);
  }
  return lines;
}

function show(options: BlkCommandOptions, value: object, lines: readonly string[]): void {
  if (options.json) printJson(value, 'line');
  else print(lines.join('\n'));
}
