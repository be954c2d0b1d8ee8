/** `vring serve blk`: names, options and their checks; what it does is in blk-service.ts. */
import { Command, Option } from 'commander';
import { parsePart, parseStack, type StackSpec } from '../storage/index.ts';
import { type DiskOptions, diskOptions, serveDisk, shapeOf } from './blk-options.ts';
import type { BlkServiceOptions } from './blk-service.ts';
import { bytes } from './option-values.ts';
import { UsageError } from './output.ts';

type ServeBlkOptions = DiskOptions & {
  readonly socket?: string;
  readonly vduse?: string;
  readonly file?: string;
  readonly memory?: number;
  readonly zones?: string;
  readonly bind: 'virtio' | 'vhost' | 'none';
  readonly keep: boolean;
  readonly ownBounce: boolean;
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
  const command = new Command('blk')
    .summary('a disk from a file, a block device or memory')
    .description('Serves a disk over vhost-user or VDUSE until SIGTERM or SIGINT.')
    .option('--socket <path>', 'listen here for a vhost-user front-end')
    .option('--vduse <name>', 'be /dev/vduse/NAME, made if it is not there')
    .option('--file <path>', 'the bytes: a regular file or a block device')
    .option('--memory <size>', 'the bytes: zeros in memory, gone at the end; such as 64M', bytes)
    .option('--zones <size>', 'the disk is zoned, as --layer zoned:...: 64M,conventional=4,open=8')
    .addOption(
      new Option('--bind <driver>', 'who drives it (--vduse)')
        .choices(['virtio', 'vhost', 'none'])
        .default('virtio'),
    )
    .option('--keep', 'leave the device to a successor at the end (--vduse)', false)
    .option('--own-bounce', "memory of ours as the kernel's bounce buffer (--vduse)", false)
    .addHelpText('after', EXAMPLES);
  return diskOptions(command).action(async (options: ServeBlkOptions) => {
    process.exitCode = await serveDisk(serviceOptions(options), options);
  });
}

function serviceOptions(options: ServeBlkOptions): Omit<BlkServiceOptions, 'onEvent'> {
  const { socket, vduse, file, memory, layer } = options;
  if ((socket === undefined) === (vduse === undefined)) {
    throw new UsageError('say where the disk is served: either --socket PATH or --vduse NAME');
  }
  const ways = [file, memory, layer[0]].filter((way) => way !== undefined);
  if (ways.length !== 1) {
    const text = 'say where the bytes are: either --file PATH, --memory SIZE or --layer LAYER...';
    throw new UsageError(text);
  }
  if (options.zones !== undefined && layer.length > 0) {
    throw new UsageError(
      '--zones goes with --file and --memory; with --layer write zoned:... first',
    );
  }
  const { bind, keep, ownBounce } = options;
  if (socket !== undefined && (keep || ownBounce || bind !== 'virtio')) {
    const text = '--keep, --bind and --own-bounce belong to --vduse; remove them, or --socket';
    throw new UsageError(text);
  }
  const overVduse = { vduse: vduse as string, bind, keep, ownBounce };
  const at = socket === undefined ? overVduse : { socket };
  const stack = stackOf(options);
  return { at, stack, ...shapeOf(options) };
}

function stackOf({ file, memory, layer, zones }: ServeBlkOptions): StackSpec {
  const above = zones === undefined ? [] : [parsePart(`zoned:${zones}`, '--zones')];
  if (file !== undefined) return [...above, { kind: 'file', path: file }];
  if (memory !== undefined) return [...above, { kind: 'memory', sizeBytes: memory }];
  return parseStack(layer, '--layer');
}
