/** `vring serve blk`: names, options and their checks; what it does is in blk-service.ts. */
import { Command, InvalidArgumentError, Option } from 'commander';
import type { BlkServiceEvent, BlkServiceOptions } from './blk-service.ts';
import { complain, printable, printJson, UsageError } from './output.ts';
import { serveUntilSignal } from './serve-run.ts';

type ServeBlkOptions = {
  readonly socket?: string;
  readonly vduse?: string;
  readonly file?: string;
  readonly memory?: number;
  readonly readOnly: boolean;
  readonly queues: number;
  readonly serial: string;
  readonly blockSize: number;
  readonly packed: boolean;
  readonly iommu: boolean;
  readonly spin: number;
  readonly bind: 'virtio' | 'vhost' | 'none';
  readonly keep: boolean;
  readonly ownBounce: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
};

const EXAMPLES = `
Examples:
  A disk for a VM:
    truncate -s 10G vm0.img
    vring serve blk --socket /run/vring/vm0-disk.sock --file vm0.img --queues 4
    qemu-system-x86_64 ... -chardev socket,id=disk0,path=/run/vring/vm0-disk.sock,reconnect=1 \\
      -device vhost-user-blk-pci,chardev=disk0,num-queues=4
  A disk of this machine's kernel, /dev/vdX:
    modprobe -a vduse virtio_vdpa virtio_blk
    vring serve blk --vduse disk0 --file vm0.img
  The same for a program that opens /dev/vhost-vdpa-N:
    vring serve blk --vduse disk0 --memory 64M --bind vhost

Signals: SIGUSR2 looks at the file's size again, and tells the driver where it has changed;
SIGTERM and SIGINT end: requests under way are finished first. A driver waits for a server that
died, and goes on with the next one.
Exit status: 0 ended by a signal, 1 failed, 2 wrong usage.
What is served and what is not: docs/block-device.md.`;

export function serveBlkCommand(): Command {
  return new Command('blk')
    .summary('a disk from a file, a block device or memory')
    .description('Serves a disk over vhost-user or VDUSE until SIGTERM or SIGINT.')
    .option('--socket <path>', 'listen here for a vhost-user front-end')
    .option('--vduse <name>', 'be /dev/vduse/NAME, made if it is not there')
    .option('--file <path>', 'the bytes: a regular file or a block device')
    .option('--memory <size>', 'the bytes: zeros in memory, gone at the end; such as 64M', size)
    .option('--read-only', 'nothing can be written', false)
    .option('--queues <n>', 'virtqueues, 1 to 64', queues, 1)
    .option('--serial <text>', 'serial number, at most 20 bytes of ASCII', serial, '')
    .option('--block-size <bytes>', 'logical blocks: 512 to 4096', blockSize, 512)
    .option('--no-packed', 'offer split rings only')
    .option('--iommu', 'vhost-user: let the driver sit behind an IOMMU', false)
    .option('--spin <us>', 'how long an empty queue is polled, microseconds', spin, 50)
    .addOption(
      new Option('--bind <driver>', 'who drives it (--vduse)')
        .choices(['virtio', 'vhost', 'none'])
        .default('virtio'),
    )
    .option('--keep', 'leave the device to a successor at the end (--vduse)', false)
    .option('--own-bounce', "memory of ours as the kernel's bounce buffer (--vduse)", false)
    .option('--json', 'readiness, events and counters as JSON lines on standard output', false)
    .option('-q, --quiet', 'no events', false)
    .addHelpText('after', EXAMPLES)
    .action(async (options: ServeBlkOptions) => {
      process.exitCode = await serveBlk(options);
    });
}

async function serveBlk(options: ServeBlkOptions): Promise<number> {
  const service = serviceOptions(options);
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
    return { readiness: running.readiness, failed: running.failed, close };
  }, options);
}

function serviceOptions(options: ServeBlkOptions): Omit<BlkServiceOptions, 'onEvent'> {
  const { socket, vduse, file, memory } = options;
  if ((socket === undefined) === (vduse === undefined)) {
    throw new UsageError('say where the disk is served: either --socket PATH or --vduse NAME');
  }
  if ((file === undefined) === (memory === undefined)) {
    throw new UsageError('say where the bytes are: either --file PATH or --memory SIZE');
  }
  const { bind, keep, ownBounce } = options;
  if (socket !== undefined && (keep || ownBounce || bind !== 'virtio')) {
    const text = '--keep, --bind and --own-bounce belong to --vduse; remove them, or --socket';
    throw new UsageError(text);
  }
  const overVduse = { vduse: vduse as string, bind, keep, ownBounce };
  const at = socket === undefined ? overVduse : { socket };
  const image = file === undefined ? { memoryBytes: memory as number } : { file };
  const { readOnly, queues, serial, blockSize: blockBytes, packed, iommu } = options;
  const spinMs = options.spin / 1000;
  return { at, image, readOnly, queues, serial, blockBytes, packed, iommu, spinMs };
}

function eventLine(event: BlkServiceEvent): string {
  const { event: kind, ...rest } = event;
  const words = Object.entries(rest).map(([name, value]) => `${name} ${String(value)}`);
  return [kind, ...words].join(', ');
}

const UNITS: Readonly<Record<string, number>> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 };

function size(text: string): number {
  const match = /^(\d+)([kmg]?)i?b?$/i.exec(text);
  const bytes = match === null ? NaN : Number(match[1]) * UNITS[(match[2] ?? '').toLowerCase()]!;
  if (Number.isSafeInteger(bytes) && bytes > 0 && bytes % 512 === 0) return bytes;
  throw new InvalidArgumentError('A multiple of 512 bytes is expected, such as 64M or 1G.');
}

function between(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`A whole number from ${low} to ${high} is expected.`);
  };
}

const queues = between(1, 64);
const spin = between(0, 1_000_000);

function powerOfTwo(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const isPower = Number.isInteger(value) && Number.isInteger(Math.log2(value));
    if (isPower && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`A power of two from ${low} to ${high} is expected.`);
  };
}

const blockSize = powerOfTwo(512, 4096);

function serial(text: string): string {
  if (/^[\x20-\x7e]{0,20}$/.test(text)) return text;
  throw new InvalidArgumentError('At most 20 characters of ASCII are expected.');
}
