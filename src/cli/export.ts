/** `vring export`: a stack of layers as an NBD server, without a device; what it does is below. */
import { Command } from 'commander';
import { messageOf } from '../base/errors.ts';
import type { NbdExportOptions, NbdExportStatus, StackSpec } from '../storage/index.ts';
import { exportOption, exportsOf } from './blk-options.ts';
import { stackOf } from './option-values.ts';
import { complain, printable, printJson, UsageError } from './output.ts';
import {
  eventLine,
  type Readiness,
  type Served,
  type ServiceEvent,
  serveUntilSignal,
} from './serve-run.ts';

type ExportOptions = {
  readonly export: readonly string[];
  readonly readOnly: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
};

const EXAMPLES = `
Examples:
  An image for the programs of this machine:
    vring export --export unix:/run/a.nbd /srv/a.img
    nbdinfo 'nbd+unix:///?socket=/run/a.nbd'
  What a LUKS2 image holds, for qemu-img on another machine, which has a certificate:
    vring export --read-only crypt:/etc/keys/vm0 /srv/vm0.luks --export \\
      tcp:10.0.0.1:10809,name=vm0,tls-certificate=server.pem,tls-key=server.key,tls-ca=ca.pem

PLACE is unix:PATH[,mode=0660] or tcp:HOST:PORT, with name=NAME, read-only, max=CONNECTIONS, and for
TLS tls-certificate=FILE,tls-key=FILE[,tls-ca=FILE] or tls-psk=FILE, and tls=allowed where clients
in the clear are served, too. docs/disk-sources.md has more.
Exit status: 0 ended by a signal, 1 failed, 2 wrong usage.`;

export function exportCommand(): Command {
  return new Command('export')
    .summary('serve an image by NBD, without a device')
    .description('Serves what layers make of an image by NBD until SIGTERM or SIGINT.')
    .argument('<part...>', 'what it is made of, from top to bottom: layers, and an image')
    .addOption(exportOption('<place>', 'where: unix:PATH or tcp:HOST:PORT (required, repeat)'))
    .option('--read-only', 'nothing can be written, by whatever place', false)
    .option('--json', 'readiness and events as JSON lines on standard output', false)
    .option('-q, --quiet', 'no events', false)
    .addHelpText('after', EXAMPLES)
    .action(async (parts: readonly string[], options: ExportOptions) => {
      if (options.export.length === 0) {
        throw new UsageError('say where clients connect: --export unix:PATH or tcp:HOST:PORT');
      }
      const [stack, places] = [stackOf(parts, 'PART'), exportsOf(options.export)];
      const start = (): Promise<Served> => serveExports(stack, places, options);
      process.exitCode = await serveUntilSignal(start, options);
    });
}

/** @throws ConfigError, VringError, SysError: nothing is left open. */
async function serveExports(
  stack: StackSpec,
  places: readonly NbdExportOptions[],
  options: ExportOptions,
): Promise<Served> {
  const { openStack } = await import('../storage/index.ts');
  const { workerEnvironment } = await import('../runtime/index.ts');
  const failed = Promise.withResolvers<Error>();
  const tell = (event: ServiceEvent): void => {
    if (options.json) printJson(event, 'line');
    else if (!options.quiet) complain(printable(eventLine(event)));
  };
  const image = await openStack({
    stack,
    readOnly: options.readOnly,
    environment: workerEnvironment(import.meta.url.endsWith('.ts')),
    onProblem: (reason) => {
      tell({ event: 'problem', reason });
      // A storage thread that ended took them along: there is nothing to serve any more.
      image.control('exports', undefined).then((left) => {
        if ((left as unknown[]).length < exports.length) failed.resolve(new Error(reason));
      }, failed.resolve);
    },
  });
  const exports: string[] = [];
  try {
    for (const place of places) {
      exports.push(((await image.control('export', place)) as NbdExportStatus).uri);
    }
  } catch (error) {
    await image.close();
    throw error;
  }
  const { description, sizeBytes, readOnly } = image;
  const about = { image: description, sizeBytes, readOnly, exports };
  const readiness: Readiness & typeof about = { ...NO_DEVICE, ...about };
  // Threads and their mailboxes keep no process alive; a listener there is nothing of this loop.
  const alive = setInterval(() => undefined, 2 ** 30);
  return {
    readiness,
    failed: failed.promise,
    async close() {
      clearInterval(alive);
      const counters = await image.control('exports', undefined).catch(messageOf);
      await image.close();
      if (options.json) printJson({ event: 'ended', exports: counters }, 'line');
    },
  };
}

const NO_DEVICE = {
  event: 'ready',
  device: 'nbd',
  name: null,
  socket: null,
  driver: null,
  node: null,
  interface: null,
  resumed: false,
};
