/**
 * `vring disk`: a disk as a back-end program by QEMU's conventions (docs/interop/vhost-user.rst,
 * "Backend program conventions" and "vhost-user-blk"), for management programs that start one
 * process per disk. `vring-disk` is the same without the word.
 */
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import { parseStack, type StackSpec } from '../storage/index.ts';
import { type DiskOptions, diskOptions, serveDisk, shapeOf } from './blk-options.ts';
import { print, printJson, UsageError } from './output.ts';

type BackendOptions = DiskOptions & {
  readonly socketPath?: string;
  readonly fd?: number;
  readonly blkFile?: string;
};

/** What a management program asks for before it uses an option. */
export const CAPABILITIES = { type: 'block', features: ['read-only', 'blk-file'] } as const;

/** Where the package puts the program when it is installed for the whole machine. */
const INSTALLED_PROGRAM = '/usr/bin/vring-disk';

/** docs/interop/vhost-user.json, VhostUserBackend. */
export function discovery(binary = INSTALLED_PROGRAM) {
  return { description: 'vring disk, vhost-user-blk', type: 'block', binary, tags: [] };
}

const PRINTS = ['--print-capabilities', '--print-discovery'];

const EXAMPLES = `
Examples:
  One disk, one process:
    vring disk --socket-path /run/vm0-disk.sock --blk-file vm0.img
    qemu-system-x86_64 ... -chardev socket,id=disk0,path=/run/vm0-disk.sock,reconnect=1 \\
      -device vhost-user-blk-pci,chardev=disk0
  Limited, and encrypted, with changes beside a base that stays as it is (what is above crypt
  is in the clear, so it stands on the overlay):
    vring disk --socket-path vm0.sock --layer limit:iops=500 --layer crypt:/etc/keys/vm0 \\
      --layer overlay:/srv/vm0 --layer /srv/vm0.luks
  So that management programs find it:
    vring disk --print-discovery > /etc/qemu/vhost-user/50-vring-disk.json

SIGTERM ends: requests under way are finished first. With --fd it ends when the front-end does,
unless FDNUM is a socket that listens. SIGUSR2 looks at the size of what is below again.
Exit status: 0 ended, 1 failed, 2 wrong usage.
Layers, and many disks in one process, with snapshots: docs/disks.md.`;

/** Where something is to be printed, everything else on the command line is ignored. */
export function diskCommand(args: readonly string[]): Command {
  const command = new Command('disk')
    .summary('one disk as a vhost-user-blk back-end program, as QEMU and libvirt start them')
    .description('Serves one disk on a vhost-user socket until SIGTERM.');
  if (args.some((word) => PRINTS.includes(word))) return printing(command, args);
  command
    .option('--socket-path <path>', 'listen here')
    .option('--fd <fdnum>', 'serve the socket that was handed down as this descriptor', fdNumber)
    .option('--blk-file <path>', 'the bytes: a regular file or a block device')
    .option('--print-capabilities', 'what this program can do, as JSON, and end')
    .option('--print-discovery', 'the file by which management programs find it, and end')
    .addHelpText('after', EXAMPLES);
  return diskOptions(command).action(async (options: BackendOptions) => {
    process.exitCode = await serve(options);
  });
}

function printing(command: Command, args: readonly string[]): Command {
  return command
    .allowUnknownOption()
    .allowExcessArguments()
    .action(() => {
      if (args.includes(PRINTS[0]!)) print(JSON.stringify(CAPABILITIES));
      else printJson(discovery(ownProgram()));
    });
}

/** The program beside this one, as whoever reads the file must start it. */
function ownProgram(): string {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  return fileURLToPath(new URL(`./vring-disk.${extension}`, import.meta.url));
}

async function serve(options: BackendOptions): Promise<number> {
  const { socketPath, fd, blkFile, layer } = options;
  if ((socketPath === undefined) === (fd === undefined)) {
    throw new UsageError('say where the front-end is: either --socket-path PATH or --fd FDNUM');
  }
  if ((blkFile === undefined) === (layer.length === 0)) {
    throw new UsageError('say where the bytes are: either --blk-file PATH or --layer LAYER...');
  }
  const at = socketPath === undefined ? { fd: fd! } : { socket: socketPath };
  const stack: StackSpec =
    blkFile === undefined ? parseStack(layer, '--layer') : [{ kind: 'file', path: blkFile }];
  return serveDisk({ at, stack, ...shapeOf(options) }, options);
}

function fdNumber(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 20) return value;
  throw new InvalidArgumentError('The number of an open descriptor is expected.');
}
