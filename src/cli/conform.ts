/** `vring conform`: names, options and their checks; what it does is in conform-actions.ts. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { LEVELS } from '../conformance/index.ts';
import { conformBackEnd, conformFrontEnd } from './conform-actions.ts';

const EXAMPLES = `
Examples:
  A back-end that listens on a socket:
    vring conform back-end --socket /run/vring/vm0.sock --device net
  One that is started by the runner, again whenever it dies or ends:
    vring conform back-end --socket /tmp/b.sock --device blk --level destructive \\
      --respawn 'qemu-storage-daemon --blockdev file,filename=d.img,node-name=d
                 --export vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=/tmp/b.sock'
  Only some checks, with everything that was sent and received:
    vring conform back-end --socket /tmp/b.sock --device net --only BE-RING-002 --json
  A front-end that connects to us, or listens:
    vring conform front-end --socket /tmp/f.sock --device net --seconds 20
    vring conform front-end --socket /tmp/f.sock --device net --connect

Levels: basic (a front-end that behaves), full (also single mistakes), destructive (also malformed
messages and hostile rings). Severities: must, should, may.
Exit status: 0 all that apply pass, 1 some fail or could not be judged, 2 wrong usage.`;

export function conformCommand(): Command {
  const conform = new Command('conform').description(
    'test a vhost-user back-end or front-end, rule by rule',
  );
  const backEnd = conform
    .command('back-end')
    .description('connect to a back-end as a front-end does, and check it')
    .option('--respawn <command>', 'shell command that starts the back-end, and starts it again');
  common(backEnd)
    .addOption(new Option('--level <level>', 'how rough').choices([...LEVELS]).default('full'))
    .option('--quiet-ms <ms>', 'how long nothing must happen for "nothing happens"', ms, 120)
    .option('--answer-ms <ms>', 'how long an answer or a request may take', ms, 3000)
    .option('--connect-ms <ms>', 'how long it may take to accept a new session', ms, 5000)
    .action(async (options) => {
      process.exitCode = await conformBackEnd(options);
    });
  const frontEnd = conform
    .command('front-end')
    .description('be a back-end, and check the front-end that comes');
  common(frontEnd)
    .option('--connect', 'connect to the front-end instead of listening', false)
    .option('--seconds <n>', 'how long to watch each session', seconds, 15)
    .option('--spawn <command>', 'shell command that starts the front-end')
    .action(async (options) => {
      process.exitCode = await conformFrontEnd(options);
    });
  for (const command of [conform, backEnd, frontEnd]) {
    command.showHelpAfterError('(add --help for usage and examples)');
  }
  conform.addHelpText('after', EXAMPLES);
  return conform;
}

function common(command: Command): Command {
  return command
    .requiredOption('--socket <path>', 'Unix socket of the peer')
    .addOption(
      new Option('--device <type>', 'what kind of device it is')
        .choices(['net', 'blk', 'fs', 'generic'])
        .makeOptionMandatory(),
    )
    .option('--only <ids...>', 'ids of checks, or their beginnings: BE-RING-002 BE-CONFIG')
    .option('--list', 'list the checks and end', false)
    .option('--json [file]', 'JSON report, on standard output or to a file')
    .option('--junit <file>', 'JUnit XML report')
    .option('--html <file>', 'single-file HTML report')
    .addOption(
      new Option('--fail-on <severity>', 'least severity of a failure that counts for the status')
        .choices(['must', 'should', 'may'])
        .default('may'),
    )
    .option('-v, --verbose', 'every check in the text, not only failures', false);
}

function ms(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 10 && value <= 60_000) return value;
  throw new InvalidArgumentError('expected milliseconds from 10 to 60000');
}

function seconds(text: string): number {
  const value = Number(text);
  if (value > 0 && value <= 600) return value;
  throw new InvalidArgumentError('expected seconds up to 600');
}
