/** `vring serve scsi`: names, options and their checks; what it does is in scsi-service.ts. */
import { createInterface } from 'node:readline';
import { Command, InvalidArgumentError, Option } from 'commander';
import { messageOf } from '../base/errors.ts';
import { parseUnitPlace } from '../daemon/disks/scsi-types.ts';
import { exportOption, exportsOf } from './blk-options.ts';
import { between, list, stackOf } from './option-values.ts';
import { complain, printable, printJson, UsageError } from './output.ts';
import type { ScsiService, UnitExport } from './scsi-service.ts';
import type { UnitSpec } from './scsi-unit.ts';
import { eventLine, type ServiceEvent, serveUntilSignal } from './serve-run.ts';

type ServeScsiOptions = {
  readonly socket: string;
  readonly lun: readonly string[];
  readonly readOnlyLun: readonly string[];
  readonly queues: number;
  readonly blockSize: number;
  readonly packed: boolean;
  readonly iommu: boolean;
  readonly spin: number;
  readonly commands: boolean;
  readonly export: readonly string[];
  readonly json: boolean;
  readonly quiet: boolean;
};

const EXAMPLES = `
Examples:
  Two disks of one target, and one that can only be read, for a VM:
    vring serve scsi --socket /run/vring/scsi.sock --queues 2 \\
      --lun 0:0=/srv/a.img --lun 0:1=memory:64M --read-only-lun 1:0=/srv/b.img
    qemu-system-x86_64 ... -chardev socket,id=scsi0,path=/run/vring/scsi.sock \\
      -device vhost-user-scsi-pci,chardev=scsi0,num_queues=2
  A unit in layers, from top to bottom:
    vring serve scsi --socket scsi.sock --lun 0:0=limit:iops=500 --lun 0:0=/srv/a.img
  Units that come and go:
    vring serve scsi --socket scsi.sock --lun 0:0=/srv/a.img --commands
    add 0:1=/srv/c.img
    remove 0:1
  A unit by NBD, too, as long as somebody copies it:
    export 0:0=unix:/run/vring/a.nbd,read-only
    unexport 0:0

Signals: SIGUSR2 looks at the sizes of all images again, and tells the driver where one has changed;
SIGTERM and SIGINT end: requests under way are finished first.
Exit status: 0 ended by a signal, 1 failed, 2 wrong usage.
What is served and what is not: docs/scsi-device.md.`;

export function serveScsiCommand(): Command {
  return new Command('scsi')
    .summary('a SCSI host adapter with disks, for a VM')
    .description('Serves a virtio-scsi device over vhost-user until SIGTERM or SIGINT.')
    .requiredOption('--socket <path>', 'listen here for a vhost-user front-end')
    .addOption(
      new Option('--lun <T:L=PART>', 'a unit and what it is made of: a file, memory:SIZE (repeat)')
        .argParser(list)
        .default([], 'none'),
    )
    .addOption(
      new Option('--read-only-lun <T:L=PART>', 'the same, and nothing can be written')
        .argParser(list)
        .default([], 'none'),
    )
    .option('--queues <n>', 'request queues, 1 to 64', between(1, 64), 1)
    .option('--block-size <bytes>', 'logical blocks: 512 or 4096', blockSize, 512)
    .option('--no-packed', 'offer split rings only')
    .option('--iommu', 'let the driver sit behind an IOMMU', false)
    .option('--spin <us>', 'how long an empty queue is polled, microseconds', between(0, 1e6), 50)
    .option('--commands', 'take "add T:L=PART" and "remove T:L" from standard input', false)
    .addOption(exportOption('<T:L=place>'))
    .option('--json', 'readiness, events and counters as JSON lines on standard output', false)
    .option('-q, --quiet', 'no events', false)
    .addHelpText('after', EXAMPLES)
    .action(async (options: ServeScsiOptions) => {
      process.exitCode = await serveScsi(options);
    });
}

async function serveScsi(options: ServeScsiOptions): Promise<number> {
  const { socket, queues, blockSize: blockBytes, packed, iommu } = options;
  const units = [...unitsOf(options.lun, false), ...unitsOf(options.readOnlyLun, true)];
  if (units.length === 0 && !options.commands) {
    throw new UsageError('say what the units are: --lun 0:0=FILE, or --commands to add them later');
  }
  const exports = options.export.map(unitExport);
  const { ScsiService } = await import('./scsi-service.ts');
  const onEvent = (event: ServiceEvent): void => {
    if (options.json) printJson(event, 'line');
    else if (!options.quiet) complain(printable(eventLine(event)));
  };
  const spinMs = options.spin / 1000;
  const shape = { socket, units, exports, queues, blockBytes, packed, iommu, spinMs, onEvent };
  return serveUntilSignal(async () => {
    const running = await ScsiService.start(shape);
    const onResize = (): void => void running.lookAtSizes();
    process.on('SIGUSR2', onResize);
    const lines = options.commands ? createInterface({ input: process.stdin }) : null;
    lines?.on('line', (line) => void command(running, line, onEvent));
    const close = async (): Promise<void> => {
      process.off('SIGUSR2', onResize);
      lines?.close();
      const counters = await running.close();
      if (options.json) printJson({ event: 'ended', counters }, 'line');
    };
    return { readiness: running.readiness, failed: running.failed, close };
  }, options);
}

const COMMANDS = 'expected are add T:L=PART, remove T:L, export T:L=unix:PATH and unexport T:L';
const DONE: Readonly<Record<string, string>> = {
  add: 'added',
  remove: 'removed',
  unexport: 'unexported',
};

async function command(
  service: ScsiService,
  line: string,
  onEvent: (event: ServiceEvent) => void,
): Promise<void> {
  const [verb = '', what = ''] = line.trim().split(/\s+(.*)/s);
  try {
    if (verb === 'add') {
      const [unit] = unitsOf(what.split(' '), false);
      await service.addUnit(unit as UnitSpec);
    } else if (verb === 'remove') {
      const { target, lun } = parseUnitPlace(what, 'remove');
      await service.removeUnit(target, lun);
    } else if (verb === 'export') {
      const uri = await service.exportUnit(unitExport(what));
      return onEvent({ event: 'exported', unit: what.split('=')[0]!, uri });
    } else if (verb === 'unexport') {
      const { target, lun } = parseUnitPlace(what, 'unexport');
      await service.endExports(target, lun);
    } else if (verb !== '') {
      throw new UsageError(`'${verb}' is no command; ${COMMANDS}`);
    } else {
      return;
    }
    onEvent({ event: DONE[verb]!, unit: what.split('=')[0]! });
  } catch (error) {
    onEvent({ event: 'problem', reason: messageOf(error) });
  }
}

/** `0:0=unix:/run/a.nbd`. @throws ConfigError, UsageError. */
function unitExport(text: string): UnitExport {
  const [unit, place] = unitAnd(text, '0:0=unix:/run/a.nbd');
  return { ...parseUnitPlace(unit, '--export'), where: exportsOf([place])[0]! };
}

function unitAnd(text: string, example: string): [string, string] {
  const at = text.indexOf('=');
  if (at < 1) throw new UsageError(`'${text}' is no unit; expected is such as ${example}`);
  return [text.slice(0, at), text.slice(at + 1)];
}

/** Parts of one unit follow each other, from top to bottom. @throws ConfigError, UsageError. */
function unitsOf(texts: readonly string[], readOnly: boolean): UnitSpec[] {
  const parts = new Map<string, string[]>();
  for (const text of texts) {
    const [name, part] = unitAnd(text, '0:0=/srv/a.img');
    parts.set(name, [...(parts.get(name) ?? []), part]);
  }
  return [...parts].map(([name, stack]) => {
    return { ...parseUnitPlace(name, '--lun'), stack: stackOf(stack, `--lun ${name}`), readOnly };
  });
}

function blockSize(text: string): number {
  if (text === '512' || text === '4096') return Number(text);
  throw new InvalidArgumentError('512 or 4096 is expected.');
}
