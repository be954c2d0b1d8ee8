/** What the commands that serve one disk share: options, their checks, and the run itself. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { DiskShape } from '../daemon/disks/disk-unit.ts';
import { type NbdExportOptions, parseExport } from '../storage/index.ts';
import type { BlkLifetime } from '../wire/virtio-blk.ts';
import type { BlkServiceOptions } from './blk-service.ts';
import { between, list, parseLifetime } from './option-values.ts';
import { complain, printable, printJson } from './output.ts';
import { eventLine, type ServiceEvent, serveUntilSignal } from './serve-run.ts';

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
  /** NBD, beside the driver. */
  readonly export: readonly string[];
  readonly json: boolean;
  readonly quiet: boolean;
};

/** Adds the options of `DiskOptions`. */
export function diskOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--layer <layer>', 'a part of the disk, from top to bottom (repeat)')
        .argParser(list)
        .default([], 'none'),
    )
    .option('--read-only', 'nothing can be written', false)
    .option('--queues <n>', 'virtqueues, 1 to 64', between(1, 64), 1)
    .option('--serial <text>', 'serial number, at most 20 bytes of ASCII', serial, '')
    .option('--block-size <bytes>', 'logical blocks: 512 to 4096', powerOfTwo(512, 4096), 512)
    .option('--no-packed', 'offer split rings only')
    .option('--iommu', 'vhost-user: let the driver sit behind an IOMMU', false)
    .option('--secure-erase', 'offer to overwrite what is erased', false)
    .option('--lifetime <eol,a,b>', 'what is known of the wear: 0-3, 0-11, 0-11', parseLifetime)
    .option('--spin <us>', 'how long an empty queue is polled, microseconds', spin, 50)
    .addOption(exportOption('<place>'))
    .option('--json', 'readiness, events and counters as JSON lines on standard output', false)
    .option('-q, --quiet', 'no events', false);
}

/** What a driver sees, and how long it is polled for. */
export function shapeOf(
  options: DiskOptions,
): Omit<DiskShape, 'stack'> & Pick<BlkServiceOptions, 'spinMs' | 'exports'> {
  const { readOnly, queues, serial, blockSize: blockBytes, packed, iommu, secureErase } = options;
  const shape = { readOnly, queues, serial, blockBytes, packed, iommu, secureErase };
  const exports = exportsOf(options.export);
  return { ...shape, lifetime: options.lifetime ?? null, spinMs: options.spin / 1000, exports };
}

export function exportOption(
  argument: string,
  what = 'serve it by NBD, too: unix:PATH or tcp:HOST:PORT (repeat)',
): Option {
  return new Option(`--export ${argument}`, what).argParser(list).default([], 'none');
}

/** @throws ConfigError. */
export function exportsOf(texts: readonly string[]): NbdExportOptions[] {
  return texts.map((text) => parseExport(text, '--export'));
}

/** Serves until a signal, or until the connection that was handed down is over. */
export async function serveDisk(
  service: Omit<BlkServiceOptions, 'onEvent'>,
  options: Pick<DiskOptions, 'json' | 'quiet'>,
): Promise<number> {
  const { BlkService } = await import('./blk-service.ts');
  const onEvent = (event: ServiceEvent): void => {
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
