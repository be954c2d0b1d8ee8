/** `vring scsi ...`: names, options and help; what they do is in scsi-commands.ts. */
import { Command } from 'commander';

const load = () => import('./scsi-commands.ts');

const EXAMPLES = `
Examples:
  vring scsi add vm1 --socket /run/vring/vm1-scsi.sock --queues 2
  vring scsi attach vm1 0:0 --file /srv/vm1.img          the guest finds it at once
  vring disks resize vm1:0:0 20G                         a unit is a disk, named vm1:0:0
  vring scsi detach vm1 0:0

Adapters and units that were added are remembered; those of the daemon's --config are the file's.
To serve one adapter without a daemon: vring serve scsi. docs/disks.md has all of it.`;

export function scsiCommand(): Command {
  const scsi = client(new Command('scsi'))
    .summary('list, add and remove the SCSI adapters of a daemon, attach and detach their units')
    .description('Lists the SCSI adapters with state and units.')
    .addHelpText('after', EXAMPLES)
    .action(async (options) => (await load()).showAdapters(options));
  client(scsi.command('show <name>'))
    .summary('everything about an adapter')
    .description('Everything about a SCSI adapter: units, sessions, counters of its queues.')
    .action(action((module, [name], options) => module.showAdapter(name!, options)));
  client(scsi.command('add <name>'))
    .summary('add an adapter without units, and remember it')
    .description('Adds a SCSI adapter to the running daemon, which remembers it.')
    .requiredOption('--socket <path>', 'where front-ends connect (required)')
    .option('--queues <n>', 'request queues, 1 to 64')
    .option('--mode <octal>', 'file mode of the socket')
    .option('--owner <user:group>', 'owner of the socket')
    .action(action((module, [name], options) => module.addAdapter(name!, options)));
  client(scsi.command('remove <name>'))
    .summary('remove an adapter with its units; images stay')
    .description('Ends the session of a SCSI adapter and removes its socket. Images stay.')
    .action(action((module, [name], options) => module.removeAdapter(name!, options)));
  addUnits(scsi);
  return scsi;
}

function addUnits(scsi: Command): void {
  client(scsi.command('attach <name> <unit>'))
    .summary('attach a unit, such as 0:1; the guest finds it')
    .description('Attaches a unit, TARGET:LUN, to an adapter, whose guest finds it at once.')
    .option('--file <path>', 'the bytes: a regular file or a block device')
    .option('--layer <layer>', 'a part of the disk, from top to bottom (repeat)', collect)
    .option('--read-only', 'nothing can be written')
    .option('--serial <text>', 'serial number, at most 36 bytes of ASCII')
    .option('--block-size <bytes>', 'logical blocks: 512 or 4096')
    .action(action((module, [name, unit], options) => module.attachUnit(name!, unit!, options)));
  client(scsi.command('detach <name> <unit>'))
    .summary('detach a unit; its image stays')
    .description('Detaches a unit once what is under way has ended. Its image stays.')
    .action(action((module, [name, unit], options) => module.detachUnit(name!, unit!, options)));
}

function client(command: Command): Command {
  return command
    .option('--control <path>', 'socket of the switch (env VRING_CONTROL)')
    .option('--json', 'JSON instead of text');
}

/** Options of `scsi` itself come before or after the name of what it does. */
function action(
  run: (module: Awaited<ReturnType<typeof load>>, words: string[], options: never) => Promise<void>,
) {
  return async (...parts: unknown[]): Promise<void> => {
    const command = parts.at(-1) as Command;
    const words = parts.slice(0, -2) as string[];
    await run(await load(), words, command.optsWithGlobals() as never);
  };
}

function collect(value: string, earlier: readonly string[] = []): string[] {
  return [...earlier, value];
}
