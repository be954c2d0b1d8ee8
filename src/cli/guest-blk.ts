/**
 * `vring guest blk ...`: a block device's driver on the command line. What each command does stands
 * in guest-blk-actions.ts; here are the names, the options and their checks.
 */
import { Command, InvalidArgumentError, Option } from 'commander';
import { BLK_BACKEND_FORMS } from '../guest/index.ts';
import { runAction } from './guest-actions.ts';
import type { BlkCommandOptions } from './guest-blk-actions.ts';
import { between, bytes } from './option-values.ts';

const EXAMPLES = `
Examples:
  What the disk is, and what was negotiated:
    vring guest blk --socket /run/vring/disk0.sock info
  Every byte: fill 64 MiB, ten seconds of a mix over two queues, read all of it at the end:
    vring guest blk --socket disk0.sock --queues 2 verify --size 64M --fill --seconds 10
  The same while the back-end is killed and started again:
    vring guest blk --socket disk0.sock --reconnect verify --size 64M --seconds 60
  How many random 4 KiB reads per second, 32 at a time, as JSON:
    vring guest blk --socket disk0.sock --json bench --reads 100 --depth 32 --seconds 5
  The zones of a zoned disk, and all of them under work:
    vring guest blk --socket disk0.sock zones
    vring guest blk --socket disk0.sock verify-zones --seconds 10
  Files onto and from the disk:
    vring guest blk --socket disk0.sock write --offset 1M --file image.raw
    vring guest blk --socket disk0.sock read --offset 1M --bytes 64K --out part.raw
  A vDPA device of the kernel, VDUSE or not:
    vring guest blk --backend vhost-vdpa:/dev/vhost-vdpa-0 verify --seconds 5

Sizes take K, M and G. Results go to standard output, messages to standard error.
Exit status: 0 success, 1 failure (an I/O error, wrong bytes, the back-end is missing or broke the
protocol), 2 wrong usage. verify, write, zero, discard and erase change what is on the disk;
so does bench with --reads below 100.`;

/** Below `vring guest`. */
export function addBlkCommands(guest: Command): void {
  const blk = guest
    .command('blk')
    .summary('a virtio-blk guest: read, write, verify and measure a disk')
    .description(
      'A virtio-blk guest on a vhost-user socket or on a vDPA device: reads, writes, verifies ' +
        'and measures a disk without a VM.',
    )
    .option('--backend <which>', BLK_BACKEND_FORMS)
    .option('--socket <path>', 'short for --backend vhost-user:PATH; one of both is required')
    .option('--queues <n>', 'request queues', between(1, 64), 1)
    .addOption(
      new Option('--ring <format>', 'ring format').choices(['split', 'packed']).default('split'),
    )
    .option('--ring-size <n>', 'descriptors of each ring', between(4, 32768), 128)
    .option('--features <list>', 'force features on or off: +packed,-indirect,-event_idx')
    .option('--request-size <bytes>', 'most data of one request', bytes, 65536)
    .option('--segment-size <bytes>', 'longest piece of data of one descriptor', bytes)
    .option('--huge-pages', 'guest memory from 2 MiB pages (vm.nr_hugepages)', false)
    .option('--read-only', 'refuse every command that would change the disk', false)
    .option('--reconnect', 'survive a back-end that goes away, and wait for the next one', false)
    .option('--json', 'print results as JSON, one object per line', false)
    .addHelpText('after', EXAMPLES);
  addDiskCommands(blk);
  addWorkCommands(blk);
  addZoneCommands(blk);
}

function addDiskCommands(blk: Command): void {
  command(blk, 'info', 'print what the disk is, what was offered and what was negotiated', 'info');
  command(blk, 'id', 'print the serial number', 'id');
  command(blk, 'lifetime', 'print how worn the medium is', 'lifetime');
  command(blk, 'flush', 'make what was written stay', 'flush');
  command(
    blk,
    'read',
    'read bytes of the disk',
    'read --offset 0 --bytes 4K | xxd | head',
    'read --offset 1M --bytes 64K --out part.raw',
  )
    .requiredOption('--offset <bytes>', 'where (required)', bytes)
    .requiredOption('--bytes <bytes>', 'how much (required)', bytes)
    .option('--out <file>', 'write them here instead of standard output');
  command(
    blk,
    'write',
    'write a file onto the disk, and flush',
    'write --offset 1M --file image.raw',
  )
    .requiredOption('--offset <bytes>', 'where (required)', bytes)
    .requiredOption('--file <path>', 'the bytes (required)');
  const ranges: readonly (readonly [string, string])[] = [
    ['discard', 'give bytes back to the device; what is read there afterwards is not said'],
    ['zero', 'make bytes zero'],
    ['erase', 'overwrite bytes where they lie, so that nothing is left of them'],
  ];
  for (const [name, what] of ranges) {
    const range = command(blk, name, what, `${name} --offset 1M --bytes 64K`)
      .requiredOption('--offset <bytes>', 'where (required)', bytes)
      .requiredOption('--bytes <bytes>', 'how much (required)', bytes);
    if (name === 'zero') range.option('--unmap', 'the device may give the room back', false);
  }
}

function addWorkCommands(blk: Command): void {
  const verify = command(
    blk,
    'verify',
    'write blocks that name themselves, judge every read, and read everything at the end',
    'verify --size 64M --fill --seconds 10',
    '--queues 2 verify --block-size 4K-64K --discards 5 --zeroes 5 --flush-every 100 --seconds 60',
  );
  workOptions(verify, 50).option('--fill', 'write every block once before the mix', false);
  const bench = command(
    blk,
    'bench',
    'requests as fast as they go: IOPS, bandwidth, latency, CPU, kicks and calls',
    'bench --reads 100 --depth 32 --seconds 5',
    'bench --sequential --block-size 64K --reads 0 --depth 4',
  );
  workOptions(bench, 100);
}

function addZoneCommands(blk: Command): void {
  command(blk, 'zones', 'zoned disks: print the zones and their write pointers', 'zones')
    .option('--offset <bytes>', 'from the zone of this byte on', bytes, 0)
    .option('--count <n>', 'so many zones (default: all)', between(1, 1e9));
  command(
    blk,
    'append',
    'zoned disks: append a file to a zone, and flush; prints where it went',
    'append --offset 64M --file image.raw',
  )
    .requiredOption('--offset <bytes>', 'first byte of the zone (required)', bytes)
    .requiredOption('--file <path>', 'the bytes (required)');
  for (const [name, what] of [
    ['open', 'zoned disks: open a zone, so that no other one closes it'],
    ['close', 'zoned disks: close an open zone'],
    ['finish', 'zoned disks: make a zone full'],
  ] as const) {
    command(blk, name, what, `${name} --offset 64M`).requiredOption(
      '--offset <bytes>',
      'first byte of the zone (required)',
      bytes,
    );
  }
  command(blk, 'reset', 'zoned disks: make zones empty', 'reset --offset 64M', 'reset --all')
    .option('--offset <bytes>', 'first byte of the zone', bytes)
    .option('--all', 'all zones that are not conventional', false);
  command(
    blk,
    'verify-zones',
    'zoned disks: fill and reset zones by writes and appends, and compare every byte at the end',
    'verify-zones --seconds 10',
    '--reconnect verify-zones --appends 100 --depth 32 --seconds 60',
  )
    .option('--zones <n>', 'zones that are used, the first sequential ones', between(1, 65536), 8)
    .option('--appends <percent>', 'of all zones; others are written', between(0, 100), 50)
    .option('--flush-every <writes>', 'a flush after so many writes, 0: none', between(0, 1e9), 100)
    .option('--block-size <bytes>', 'of a request (default: the granularity)', sizes)
    .option('--depth <n>', 'requests under way', between(1, 4096), 16)
    .option('--seconds <n>', 'end after so long (default: 5)', decimal)
    .option('--seed <n>', 'repeat the requests of another run', between(0, 2 ** 32 - 1));
}

function workOptions(work: Command, reads: number): Command {
  return work
    .option('--sequential', 'places one behind the other (default: anywhere)', false)
    .option('--reads <percent>', 'of all requests; what is left are writes', between(0, 100), reads)
    .option('--discards <percent>', 'of all requests', between(0, 100), 0)
    .option('--zeroes <percent>', 'of all requests', between(0, 100), 0)
    .option('--flush-every <writes>', 'a flush after so many writes, 0: none', between(0, 1e9), 0)
    .option('--block-size <bytes>', 'of a request, or a range such as 4K-64K', sizes, [4096, 4096])
    .option('--depth <n>', 'requests under way in each queue', between(1, 32768), 32)
    .option('--seconds <n>', 'end after so long (default: 5, unless another end is given)', decimal)
    .option('--requests <n>', 'end after so many requests', between(1, 1e15))
    .option('--bytes <bytes>', 'end after so many bytes', bytes)
    .option('--rate <n>', 'requests per second (default: as many as go)', between(1, 1e9))
    .option('--offset <bytes>', 'begin of the region that is used', bytes, 0)
    .option('--size <bytes>', 'of the region (default: up to the end of the disk)', bytes)
    .option('--poll', 'never sleep while something is under way', false)
    .option('--stall <seconds>', 'give up when nothing comes back for so long', decimal, 30)
    .option('--seed <n>', 'repeat the requests of another run', between(0, 2 ** 32 - 1));
}

function command(blk: Command, name: string, what: string, ...examples: string[]): Command {
  const lines = examples.map((line) => `  vring guest blk --socket /run/vring/disk0.sock ${line}`);
  return blk
    .command(name)
    .description(what)
    .addHelpText('after', `\nExamples:\n${lines.join('\n')}`)
    .action(async (...parts: unknown[]) => {
      const options = (parts.at(-1) as Command).optsWithGlobals<BlkCommandOptions>();
      const { runBlkCommand } = await import('./guest-blk-actions.ts');
      process.exitCode = await runAction(() => runBlkCommand(name, options), options.json);
    });
}

function decimal(text: string): number {
  const value = Number(text);
  if (/^\d*\.?\d+$/.test(text) && value > 0 && value <= 1e6) return value;
  throw new InvalidArgumentError('A number above 0 is expected, at most 1000000.');
}

function sizes(text: string): [number, number] {
  const [least, most, ...rest] = text.split('-');
  const range: [number, number] = [bytes(least!), bytes(most ?? least!)];
  if (rest.length === 0 && range[0] > 0 && range[0] <= range[1]) return range;
  throw new InvalidArgumentError('A size such as 4K, or a range such as 4K-64K, is expected.');
}
