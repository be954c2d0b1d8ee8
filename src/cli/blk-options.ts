/** What the commands that serve one disk share: options, their checks, and the run itself. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { DiskShape } from '../daemon/disks/disk-unit.ts';
import type { BlkLifetime } from '../wire/virtio-blk.ts';
import type { BlkServiceEvent, BlkServiceOptions } from './blk-service.ts';
import { complain, printable, printJson } from './output.ts';
import { serveUntilSignal } from './serve-run.ts';

export type DiskOptions = {
  readonly layer: readonly string[];
  readonly readOnly: boolean;
  readonly queues: number;
  readonly serial: string;
  readonly blockSize: number;
  readonly packed: boolean;
  readonly iommu: boolean;
  readonly secureErase: boolean;
  readonly lifetime?: BlkLifetime;
  readonly spin: number;
  readonly json: boolean;
  readonly quiet: boolean;
};

/** Adds the options of `DiskOptions`. */
export function diskOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--layer <layer>', 'a part of the disk, from top to bottom (repeat)')
        .argParser((text: string, all: readonly string[]) => [...all, text])
        .default([], 'none'),
    )
    .option('--read-only', 'nothing can be written', false)
    .option('--queues <n>', 'virtqueues, 1 to 64', between(1, 64), 1)
    .option('--serial <text>', 'serial number, at most 20 bytes of ASCII', serial, '')
    .option('--block-size <bytes>', 'logical blocks: 512 to 4096', powerOfTwo(512, 4096), 512)
    .option('--no-packed', 'offer split rings only')
    .option('--iommu', 'vhost-user: let the driver sit behind an IOMMU', false)
    .option('--secure-erase', 'offer to overwrite what is erased', false)
    .option('--lifetime <eol,a,b>', 'what is known of the wear: 0-3, 0-11, 0-11', lifetime)
    .option('--spin <us>', 'how long an empty queue is polled, microseconds', spin, 50)
    .option('--json', 'readiness, events and counters as JSON lines on standard output', false)
    .option('-q, --quiet', 'no events', false);
}

/** What a driver sees, and how long it is polled for. */
export function shapeOf(options: DiskOptions): Omit<DiskShape, 'stack'> & { spinMs: number } {
  const { readOnly, queues, serial, blockSize: blockBytes, packed, iommu, secureErase } = options;
  const shape = { readOnly, queues, serial, blockBytes, packed, iommu, secureErase };
  return { ...shape, lifetime: options.lifetime ?? null, spinMs: options.spin / 1000 };
}

/** Serves until a signal, or until the connection that was handed down is over. */
export async function serveDisk(
  service: Omit<BlkServiceOptions, 'onEvent'>,
  options: Pick<DiskOptions, 'json' | 'quiet'>,
): Promise<number> {
  const { BlkService } = await import('./blk-service.ts');
  const onEvent = (event: BlkServiceEvent): void => {
    if (options.json) printJson(event, 'line');
    else if (!options.quiet) complain(printable(eventLine(event)));
  };
  return serveUntilSignal(async () => {
    const running = await BlkService.start({ ...service, onEvent });
    const onResize = (): void => void running.lookAtSize();
    process.on('SIGUSR2', onResize);
    const close = async (): Promise<void> => {
      process.off('SIGUSR2', onResize);
      const counters = await running.close();
      if (options.json) printJson({ event: 'ended', counters }, 'line');
    };
    const { readiness, failed, ended } = running;
    return { readiness, failed, ended, close };
  }, options);
}

function eventLine(event: BlkServiceEvent): string {
  const { event: kind, ...rest } = event;
  const words = Object.entries(rest).map(([name, value]) => `${name} ${String(value)}`);
  return [kind, ...words].join(', ');
}

const UNITS: Readonly<Record<string, number>> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 };

export function size(text: string): number {
  const match = /^(\d+)([kmg]?)i?b?$/i.exec(text);
  const bytes = match === null ? NaN : Number(match[1]) * UNITS[(match[2] ?? '').toLowerCase()]!;
  if (Number.isSafeInteger(bytes) && bytes > 0 && bytes % 512 === 0) return bytes;
  throw new InvalidArgumentError('A multiple of 512 bytes is expected, such as 64M or 1G.');
}

/** The fields of `struct virtio_blk_lifetime`, whose ranges the device checks. */
function lifetime(text: string): BlkLifetime {
  const [preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB, ...rest] = text
    .split(',')
    .map((word) => (/^\d+$/.test(word) ? Number(word) : NaN));
  if (deviceLifetimeEstTypB === undefined || rest.length > 0) {
    throw new InvalidArgumentError('Three numbers are expected, such as 1,3,2.');
  }
  return {
    preEolInfo: preEolInfo!,
    deviceLifetimeEstTypA: deviceLifetimeEstTypA!,
    deviceLifetimeEstTypB,
  };
}

function between(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`A whole number from ${low} to ${high} is expected.`);
  };
}

const spin = between(0, 1_000_000);

function powerOfTwo(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const isPower = Number.isInteger(value) && Number.isInteger(Math.log2(value));
    if (isPower && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`A power of two from ${low} to ${high} is expected.`);
  };
}

function serial(text: string): string {
  if (/^[\x20-\x7e]{0,20}$/.test(text)) return text;
  throw new InvalidArgumentError('At most 20 characters of ASCII are expected.');
}
