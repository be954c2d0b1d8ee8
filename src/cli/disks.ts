/** `vring disks ...`: names, options and help; what they do is in disk-commands.ts. */
import { Command } from 'commander';

const load = () => import('./disk-commands.ts');

const EXAMPLES = `
Examples:
  vring disks --watch                                    IOPS, bandwidth, latency, live
  vring disks add vm1 --socket /run/vring/vm1-disk.sock --file /srv/vm1.img
  vring disks resize vm1 20G                             the guest sees it at once
  vring disks limit vm1 --iops 500 --bandwidth 50M
  vring disks snapshot vm1 before-upgrade
  vring disks export vm1 --socket /run/vring/vm1.nbd

A disk is added to a daemon that runs: vring switch, with or without ports. Disks that were added
are remembered; those of the daemon's --config are the file's. docs/disks.md has all of it.`;

export function disksCommand(): Command {
  const disks = client(new Command('disks'))
    .summary('list, add, remove, resize, limit, snapshot and export the disks of a daemon')
    .description('Lists the disks with state and counters.')
    .option('-w, --watch', 'rates and latencies, live')
    .option('-i, --interval <seconds>', 'time between two measurements (--watch)', '1')
    .option('--once', 'measure one interval and end (--watch)')
    .addHelpText('after', EXAMPLES)
    .action(async (options) => (await load()).showDisks(options));
  addLife(disks);
  addChanges(disks);
  addSnapshots(disks);
  addTests(disks);
  return disks;
}

function client(command: Command): Command {
  return command
    .option('--control <path>', 'socket of the switch (env VRING_CONTROL)')
    .option('--json', 'JSON instead of text');
}

/** Options of `disks` itself come before or after the name of what it does. */
function action(
  run: (module: Awaited<ReturnType<typeof load>>, words: string[], options: never) => Promise<void>,
) {
  return async (...parts: unknown[]): Promise<void> => {
    const command = parts.at(-1) as Command;
    const words = parts.slice(0, -2) as string[];
    await run(await load(), words, command.optsWithGlobals() as never);
  };
}

function addLife(disks: Command): void {
  client(disks.command('show <name>'))
    .summary('everything about a disk')
    .description('Everything about a disk: layers, limits, counters, latencies.')
    .action(action((module, [name], options) => module.showDisk(name!, options)));
  client(disks.command('add <name>'))
    .summary('add a disk, and remember it')
    .description('Adds a disk to the running daemon, which remembers it.')
    .requiredOption('--socket <path>', 'where front-ends connect (required)')
    .option('--file <path>', 'the bytes: a regular file or a block device')
    .option('--layer <layer>', 'a part of the disk, from top to bottom (repeat)', collect)
    .option('--read-only', 'nothing can be written')
    .option('--queues <n>', 'virtqueues, 1 to 64')
    .option('--serial <text>', 'serial number, at most 20 bytes of ASCII')
    .option('--block-size <bytes>', 'logical blocks: 512 to 4096')
    .option('--no-packed', 'offer split rings only')
    .option('--iommu', 'let the driver sit behind an IOMMU')
    .option('--secure-erase', 'offer to overwrite what is erased; not over layers')
    .option('--lifetime <eol,a,b>', 'what is known of the wear: 0-3, 0-11, 0-11')
    .option('--mode <octal>', 'file mode of the socket')
    .option('--owner <user:group>', 'owner of the socket')
    .action(action((module, [name], options) => module.addDisk(name!, options)));
  client(disks.command('remove <name>'))
    .summary('remove a disk and its socket; the image stays')
    .description('Ends the session of a disk and removes its socket. The image stays.')
    .action(action((module, [name], options) => module.removeDisk(name!, options)));
  client(disks.command('reopen <name>'))
    .summary('open the image anew')
    .description('Opens the image anew: of a disk that failed, or after a flush that failed.')
    .action(action((module, [name], options) => module.reopenDisk(name!, options)));
}

function addChanges(disks: Command): void {
  client(disks.command('resize <name> <size>'))
    .summary('another size, such as 20G; the guest is told')
    .description('Gives a disk another size, such as 20G; the guest is told.')
    .option('--shrink', 'bytes may be taken away')
    .action(action((module, [name, size], options) => module.resizeDisk(name!, size!, options)));
  client(disks.command('limit <name>'))
    .summary('requests and bytes per second')
    .description('Limits requests and bytes per second, from now on.')
    .option('--iops <n>', 'requests per second')
    .option('--bandwidth <bytes>', 'bytes per second, such as 50M')
    .option('--burst <seconds>', 'what may be done at once after a pause, seconds of the rate')
    .option('--none', 'no limits any more')
    .action(action((module, [name], options) => module.limitDisk(name!, options)));
  client(disks.command('export <name>'))
    .summary('serve the disk by NBD, too')
    .description('Serves the disk by NBD, too, on a Unix socket.')
    .option('--socket <path>', 'where NBD clients connect')
    .option('--read-only', 'clients may not write')
    .option('--end', 'end the export')
    .action(action((module, [name], options) => module.exportDisk(name!, options)));
}

function addTests(disks: Command): void {
  client(disks.command('cut <name>'))
    .summary('cut the power of a disk with a volatile cache, for tests')
    .description(
      'Cuts the power of a disk with a volatile cache (fault:cache=volatile), for tests. ' +
        'What was not flushed is kept, lost or torn; the disk fails until it is reopened.',
    )
    .option('--seed <n>', 'decides what is kept; the same for the same')
    .action(action((module, [name], options) => module.cutPower(name!, options)));
}

function addSnapshots(disks: Command): void {
  client(disks.command('snapshots <name>'))
    .summary('list the snapshots of an overlay')
    .description('Lists the snapshots of a disk that has an overlay.')
    .action(action((module, [name], options) => module.showSnapshots(name!, options)));
  client(disks.command('snapshot <name> <snapshot>'))
    .summary('make a snapshot while the disk is served')
    .description('Makes a snapshot while the disk is served.')
    .action(action((module, [name, to], options) => module.snapshotDisk(name!, to!, options)));
  client(disks.command('rollback <name> [snapshot]'))
    .summary('drop what was written since a snapshot')
    .description('Drops what was written since a snapshot, the last one when none is named.')
    .option('--force', 'under a driver that runs, too')
    .action(action((module, [name, to], options) => module.rollbackDisk(name!, to, options)));
  client(disks.command('commit <name>'))
    .summary('merge what was written into what is below')
    .description('Merges what was written into what is below, in the background.')
    .option('--to-base', 'into the base of the overlay, which must be writable')
    .option('--status', 'how far the last one is')
    .action(action((module, [name], options) => module.commitDisk(name!, options)));
  client(disks.command('delete-snapshot <name> <snapshot>'))
    .summary('delete a snapshot')
    .description('Deletes a snapshot: what it holds is merged into what came after it.')
    .action(
      action((module, [name, what], options) => module.deleteSnapshot(name!, what!, options)),
    );
}

function collect(value: string, earlier: readonly string[] = []): string[] {
  return [...earlier, value];
}
