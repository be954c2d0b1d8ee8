/** What the commands of `vring guest net` do. Each returns the exit status. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { ConfigError, VringError, messageOf } from '../base/errors.ts';
import {
  connectNetGuest,
  NetStack,
  fileSource,
  parseFeatureChoice,
  parseIp,
  parsePrefix,
  patternSource,
  receiveBulk,
  runTraffic,
  sendBulk,
  type BulkResult,
  type GsoKind,
  type IommuMode,
  type IpAddress,
  type NetGuest,
  type NetGuestOptions,
  type TrafficOptions,
  type TrafficReport,
} from '../guest/index.ts';
import { backendOf, checkMigrateTo, moveOnSignal, onRestored, tellLink } from './guest-events.ts';
import { featureNames } from '../wire/virtio.ts';

/** Options of `guest net` and of all its commands; commander filled in the defaults. */
export type GuestOptions = {
  backend?: string;
  socket?: string;
  server: boolean;
  ip?: string;
  ip6?: string;
  gateway?: string;
  mac?: string;
  vlan?: number;
  ring: 'split' | 'packed';
  ringSize: number;
  queues: number;
  features?: string;
  mtu?: number;
  hugePages: boolean;
  poll: boolean;
  reconnect: boolean;
  iommu?: IommuMode;
  migrateTo?: string;
  json: boolean;
  // ping
  count: number;
  interval: number;
  payload: number;
  timeout: number;
  // pps, sink, echo, bulk
  size: number;
  seconds?: number;
  to?: string;
  flows: number;
  firstFlow: number;
  rate?: number;
  window?: number;
  loop: boolean;
  echo: boolean;
  gso: GsoKind;
  gsoSize: number;
  verifyEvery: number;
  minFrames: number;
  file?: string;
  port: number;
  out?: string;
  wait?: number;
};

/** The longest that a timer takes: 24 days. */
const FOREVER_MS = 2 ** 31 - 1;

const EXIT_FAILURE = 1;
const EXIT_USAGE = 2;

/** Runs an action; errors go to standard error. Wrong values are usage errors. */
export async function runAction(action: () => Promise<number>, json: boolean): Promise<number> {
  try {
    return await action();
  } catch (error) {
    const code = error instanceof VringError ? error.code : 'ERR_VRING_UNEXPECTED';
    const message = messageOf(error);
    process.stderr.write(`vring guest: ${message}\n`);
    if (json) printJson({ error: { code, message } });
    if (!(error instanceof VringError) && error instanceof Error) {
      process.stderr.write(`${error.stack}\n`);
    }
    return error instanceof ConfigError ? EXIT_USAGE : EXIT_FAILURE;
  }
}

/** `vring guest net ping`. */
export async function ping(options: GuestOptions, target: string): Promise<number> {
  const to = addressOf(target);
  return withStack(options, async (stack, guest, signal) => {
    const identifier = process.pid & 0xffff;
    const times: number[] = [];
    let damaged = 0;
    let sent = 0;
    let unreachable: string | null = null;
    say(
      options,
      `PING ${to.text} from ${stack.ownAddress(to.family).text}: ${options.payload} bytes`,
    );
    for (; sent < options.count && !signal.aborted && guest.failure === null;) {
      if (sent > 0) await sleep(options.interval * 1000, signal);
      if (signal.aborted) break;
      const sequence = ++sent & 0xffff;
      const timeoutMs = options.timeout * 1000;
      try {
        const request = { identifier, sequence, timeoutMs, payloadBytes: options.payload };
        const result = await abortable(stack.ping(to, request), signal);
        if (result === null) say(options, `no answer: seq=${sequence}`);
        else {
          times.push(result.milliseconds);
          if (!result.intact) damaged++;
          const mark = result.intact ? '' : ' (payload changed!)';
          const bytes = options.payload + 8;
          const ms = result.milliseconds.toFixed(3);
          say(options, `${bytes} bytes from ${to.text}: seq=${sequence} time=${ms} ms${mark}`);
        }
      } catch (error) {
        if (!(error instanceof VringError) || error.code !== 'ERR_VRING_GUEST_UNREACHABLE')
          throw error;
        unreachable = error.message;
        process.stderr.write(`vring guest: ${error.message}\n`);
      }
    }
    const milliseconds = summary(times);
    const lossPercent = sent === 0 ? 0 : (100 * (sent - times.length)) / sent;
    const received = times.length;
    print(
      options,
      { address: to.text, sent, received, lossPercent, damaged, milliseconds, unreachable },
      [
        `${sent} sent, ${received} received, ${lossPercent.toFixed(0)} % lost`,
        ...(milliseconds === null ? [] : [roundTrips(milliseconds)]),
      ],
    );
    return received > 0 && damaged === 0 ? 0 : EXIT_FAILURE;
  });
}

/** `vring guest net echo`. */
export function echo(options: GuestOptions): Promise<number> {
  return withStack(options, async (stack, guest, signal) => {
    stack.udp.bindOther((payload, from, fromPort, toPort) => {
      if (payload.length > stack.udp.maxPayload(from.family)) return; // came as segmented UDP
      if (!stack.udp.send(from, fromPort, toPort, payload)) stack.resolve(from).catch(() => {});
    });
    ready(options, guest, stack);
    await sleep(options.seconds === undefined ? FOREVER_MS : options.seconds * 1000, signal);
    const { counters } = stack;
    print(options, { event: 'end', counters }, [
      `${counters.echoRequestsIn} echo requests, ${counters.rxUdp} datagrams, ` +
        `${counters.rxFrames} frames in, ${counters.txFrames} out`,
    ]);
    return 0;
  });
}

/** `vring guest net bulk-send`. */
export async function bulkSend(options: GuestOptions, target: string): Promise<number> {
  const to = addressOf(target);
  return withStack(options, async (stack, _guest, signal) => {
    const file = options.file === undefined ? null : fileSource(options.file);
    try {
      const source = file ?? patternSource(options.size);
      const result = await sendBulk(stack, { to, port: options.port, source, signal });
      return reportBulk(options, result, 'sent');
    } finally {
      file?.close();
    }
  });
}

/** `vring guest net bulk-receive`. */
export async function bulkReceive(options: GuestOptions): Promise<number> {
  return withStack(options, async (stack, guest, signal) => {
    const out = options.out === undefined ? null : openForWriting(options.out);
    try {
      ready(options, guest, stack);
      const receiving = receiveBulk(stack, {
        port: options.port,
        signal,
        ...(out === null ? {} : { write: (bytes: Uint8Array) => void writeSync(out, bytes) }),
        ...(options.wait === undefined ? {} : { waitMs: options.wait * 1000 }),
      });
      return reportBulk(options, await receiving, 'received');
    } finally {
      if (out !== null) closeSync(out);
    }
  });
}

/** `vring guest net info`. */
export function info(options: GuestOptions): Promise<number> {
  return withGuest(options, { notify: 'manual' }, async (guest) => {
    const offered = describeFeatures(guest.offered);
    const negotiated = describeFeatures(guest.features);
    const { mac, mtu, queuePairs, config } = guest;
    const ring = guest.packed ? 'packed' : 'split';
    const backend = guest.backend.description;
    const { kind } = backendOf(options);
    print(options, { backend, kind, offered, negotiated, ring, queuePairs, mac, mtu, config }, [
      `back-end     ${backend}`,
      `offered      ${offered.bits}  ${offered.names.join(' ')}`,
      `negotiated   ${negotiated.bits}  ${negotiated.names.join(' ')}`,
      `rings        ${2 * queuePairs} ${ring}, ${guest.rx[0].plan.size} descriptors each`,
      `MAC, MTU     ${mac}, ${mtu}`,
      `config       ${config === null ? 'not served by the back-end' : JSON.stringify(config)}`,
    ]);
    return 0;
  });
}

/** `vring guest net pps`. */
export function pps(options: GuestOptions): Promise<number> {
  const generate = options.echo
    ? null
    : {
        sizeBytes: options.size,
        targetMac: options.to ?? 'ff:ff:ff:ff:ff:ff',
        flows: options.flows,
        firstFlow: options.firstFlow,
        vlan: options.vlan ?? null,
        rate: options.rate ?? null,
        window: options.window ?? null,
        gso: options.gso,
        gsoSize: options.gsoSize,
      };
  // Echo returns what comes, also long frames; a generator's slots are as short as they may be.
  const room: NetGuestOptions = options.echo ? {} : { maxTxFrameBytes: options.size };
  return withGuest(options, { notify: 'manual', ...room }, async (guest, signal) => {
    if (options.echo) {
      guest.announce();
      ready(options, guest, null);
    }
    const report = await traffic(options, { guest, generate, echo: options.echo, signal });
    const cameBack = report.records.good === report.records.sent;
    if (report.records.corrupt > 0) return EXIT_FAILURE;
    if (options.loop && !cameBack) {
      const missing = report.records.sent - report.records.good;
      process.stderr.write(`vring guest: ${missing} of ${report.records.sent} did not come back\n`);
      return report.records.good === 0 ? EXIT_FAILURE : 0;
    }
    return 0;
  });
}

/** `vring guest net sink`. */
export function sink(options: GuestOptions): Promise<number> {
  return withGuest(options, { notify: 'manual' }, async (guest, signal) => {
    guest.announce(); // so that a switch knows our port before the first frame
    onRestored(guest, () => void guest.announce());
    ready(options, guest, null);
    const report = await traffic(options, { guest, signal });
    if (report.received.frames < options.minFrames) {
      process.stderr.write(
        `vring guest: ${report.received.frames} frames came, ${options.minFrames} are due\n`,
      );
      return EXIT_FAILURE;
    }
    return report.records.corrupt > 0 ? EXIT_FAILURE : 0;
  });
}

async function traffic(options: GuestOptions, wanted: TrafficOptions): Promise<TrafficReport> {
  const report = await runTraffic({
    ...wanted,
    seconds: options.seconds ?? null,
    verifyEvery: options.verifyEvery,
  });
  const rate = (name: string, r: TrafficReport['sent']): string =>
    `${name.padEnd(9)}${r.mpps.toFixed(3)} Mpps  ${r.gbitPerSecond.toFixed(3)} Gbit/s  ` +
    `${r.frames} frames in ${report.seconds.toFixed(2)} s`;
  const { records, latency } = report;
  print(options, { event: 'end', ...report }, [
    rate('sent', report.sent),
    rate('received', report.received),
    `good ${records.good}, lost ${records.lost}, reordered ${records.reordered}, ` +
      `repeated ${records.repeated}, stale ${records.stale}, corrupt ${records.corrupt}, ` +
      `foreign ${records.foreign}, compared ${records.verified}`,
    ...(latency === null
      ? []
      : [`one way avg/max ${latency.averageUs.toFixed(0)}/${latency.maxUs.toFixed(0)} us`]),
    `CPU ${report.cpuSeconds.toFixed(2)} s, kicks ${report.kicks}, calls ${report.calls}`,
  ]);
  return report;
}

type StackUser = (stack: NetStack, guest: NetGuest, signal: AbortSignal) => Promise<number>;

async function withStack(options: GuestOptions, use: StackUser): Promise<number> {
  backendOf(options); // what is missing there comes first
  if (options.ip === undefined && options.ip6 === undefined) {
    throw new ConfigError('--ip', 'this command needs --ip or --ip6, for example --ip 10.0.0.1/24');
  }
  const ip = options.ip === undefined ? null : parsePrefix(options.ip, 4, '--ip');
  const ip6 = options.ip6 === undefined ? null : parsePrefix(options.ip6, 6, '--ip6');
  const gateway = options.gateway === undefined ? null : parseIp(options.gateway);
  if (options.gateway !== undefined && gateway === null) {
    throw new ConfigError('--gateway', `"${options.gateway}" is no address`);
  }
  const notify = options.poll ? 'poll' : 'interrupt';
  return withGuest(options, { notify }, async (guest, signal) => {
    const stack = new NetStack({ link: guest, ip, ip6, gateway, vlan: options.vlan ?? null });
    try {
      stack.announce();
      onRestored(guest, () => stack.announce());
      return await use(stack, guest, signal);
    } finally {
      stack.close();
    }
  });
}

type GuestUser = (guest: NetGuest, signal: AbortSignal) => Promise<number>;

/** Starts a guest, lets `use` work with it until it ends or a signal comes, and closes it. */
async function withGuest(
  options: GuestOptions,
  special: NetGuestOptions,
  use: GuestUser,
): Promise<number> {
  const features =
    options.features === undefined
      ? {}
      : { features: parseFeatureChoice(options.features, '--features') };
  if (options.ring === 'split' && !Number.isInteger(Math.log2(options.ringSize))) {
    throw new ConfigError('--ring-size', `${options.ringSize} is no power of two`);
  }
  const backend = backendOf(options);
  checkMigrateTo(options);
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  process.once('SIGTERM', onSignal).once('SIGINT', onSignal);
  try {
    if (backend.kind === 'vhost-user' && backend.server) {
      process.stderr.write(`vring guest: waiting at ${backend.socket}\n`);
    }
    const guest = await connectNetGuest({
      backend,
      signal: stop.signal,
      queuePairs: options.queues,
      ringSize: options.ringSize,
      packed: options.ring === 'packed',
      mac: options.mac ?? null,
      mtu: options.mtu ?? null,
      hugePages: options.hugePages,
      reconnect: options.reconnect,
      iommu: options.iommu ?? false,
      ...features,
      ...special,
    });
    void guest.closed.then(() => stop.abort());
    guest.onLink = (event) => tellLink(options, event);
    const stopMoving = moveOnSignal(options, guest);
    try {
      const status = await use(guest, stop.signal);
      if (guest.failure !== null) throw guest.failure;
      return status;
    } catch (error) {
      throw guest.failure ?? error; // what follows from a failure is not the reason
    } finally {
      stopMoving();
      await guest.close();
    }
  } finally {
    process.off('SIGTERM', onSignal).off('SIGINT', onSignal);
  }
}

/** The line that scripts wait for. */
function ready(options: GuestOptions, guest: NetGuest, stack: NetStack | null): void {
  const addresses = [stack?.ip, stack?.ip6].flatMap((own) => (own ? [own.address.text] : []));
  const names = [guest.mac, ...addresses].join(', ');
  print(options, { event: 'ready', mac: guest.mac, addresses }, [`ready: ${names}`]);
}

function reportBulk(options: GuestOptions, result: BulkResult, verb: string): number {
  const gbit = result.seconds > 0 ? (result.bytes * 8) / result.seconds / 1e9 : 0;
  print(options, { event: 'end', ...result, gbitPerSecond: gbit }, [
    `${verb} ${result.bytes} bytes in ${result.seconds.toFixed(3)} s, ${gbit.toFixed(3)} Gbit/s, ` +
      `${result.repeated} chunks repeated`,
    `SHA-256 ${result.sha256} ${result.matches ? 'on both sides' : '- THE OTHER SIDE DIFFERS'}`,
  ]);
  return result.matches ? 0 : EXIT_FAILURE;
}

function describeFeatures(features: bigint): { bits: string; names: string[] } {
  return { bits: `0x${features.toString(16)}`, names: featureNames(features, 1) };
}

function summary(times: readonly number[]): { min: number; avg: number; max: number } | null {
  if (times.length === 0) return null;
  const avg = times.reduce((sum, time) => sum + time, 0) / times.length;
  return { min: Math.min(...times), avg, max: Math.max(...times) };
}

function roundTrips({ min, avg, max }: { min: number; avg: number; max: number }): string {
  return `round trip min/avg/max ${[min, avg, max].map((ms) => ms.toFixed(3)).join('/')} ms`;
}

function addressOf(text: string): IpAddress {
  const address = parseIp(text);
  if (address !== null) return address;
  throw new ConfigError('address', `"${text}" is no IPv4 or IPv6 address`);
}

function openForWriting(path: string): number {
  try {
    return openSync(path, 'w');
  } catch (error) {
    throw new ConfigError('--out', messageOf(error), { cause: error });
  }
}

/** The promise, or an error when a signal ends the command first. */
function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(new VringError('ERR_VRING_CLOSED', 'ended by a signal'));
    if (signal.aborted) return abort();
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener('abort', end, { once: true });
  });
}

/** A line while a command runs; not with --json. */
function say(options: GuestOptions, line: string): void {
  if (!options.json) process.stdout.write(`${line}\n`);
}

function print(options: GuestOptions, value: object, lines: readonly string[]): void {
  if (options.json) printJson(value);
  else process.stdout.write(`${lines.join('\n')}\n`);
}

function printJson(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
