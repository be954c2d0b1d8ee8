/** `vring conform`: names, options and their checks; what it does is in conform-actions.ts. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { LEVELS } from '../conformance/index.ts';
import { conformBackEnd, conformFrontEnd } from './conform-actions.ts';

const BACK_END_EXAMPLES = `
Examples:
  A back-end that listens on a socket:
    vring conform back-end --socket /run/vring/vm0.sock --device net
  One that is started by the runner, again whenever it dies or ends:
    vring conform back-end --socket /tmp/b.sock --device blk --level destructive \\
      --respawn 'qemu-storage-daemon --blockdev driver=file,filename=d.img,node-name=d \\
        --export type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=/tmp/b.sock'
  Only some checks, with everything that was sent and received:
    vring conform back-end --socket /tmp/b.sock --device net --only BE-RING-002 BE-CONFIG --json
  A report to read, one for a CI system, and only what must be right counts:
    vring conform back-end --socket b.sock --device net --html r.html --junit r.xml --fail-on must`;

const FRONT_END_EXAMPLES = `
Examples:
  A front-end that connects to us, or listens:
    vring conform front-end --socket /tmp/f.sock --device net --seconds 20
    vring conform front-end --socket /tmp/f.sock --device net --connect
  One that is started by the runner, three times, so that its ends are watched too:
    vring conform front-end --socket /tmp/f.sock --device net --seconds 5 \\
      --spawn 'vring guest net --socket /tmp/f.sock --ip 10.0.0.1/24 --reconnect echo'`;

const NOTES = `

Levels: basic (a front-end that behaves), full (also single mistakes), destructive (also malformed
messages and hostile rings). Severities: must, should, may.
Exit status: 0 all that apply pass, 1 some fail or could not be judged, 2 wrong usage.
What the verdicts mean, and what peers pass and fail: docs/conformance.md.`;

export function conformCommand(): Command {
  const conform = new Command('conform')
    .summary('test a vhost-user back-end or front-end, rule by rule')
    .description('Tests a vhost-user back-end or front-end, rule by rule.');
  const backEnd = conform
    .command('back-end')
    .summary('connect to a back-end as a front-end does, and check it')
    .description('Connects to a back-end as a front-end does, and checks it.')
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
    .summary('be a back-end, and check the front-end that comes')
    .description('Is a back-end, waits for a front-end (at most 40 s), and checks it.');
  common(frontEnd)
    .option('--connect', 'connect to the front-end instead of listening', false)
    .option('--seconds <n>', 'how long to watch each session', seconds, 15)
    .option('--spawn <command>', 'shell command that starts the front-end')
    .action(async (options) => {
      process.exitCode = await conformFrontEnd(options);
    });
  backEnd.addHelpText('after', BACK_END_EXAMPLES + NOTES);
  frontEnd.addHelpText('after', FRONT_END_EXAMPLES + NOTES);
  const both = FRONT_END_EXAMPLES.replace('\nExamples:\n', '\n');
  conform.addHelpText('after', BACK_END_EXAMPLES + both + NOTES);
  return conform;
}

const DEVICES = ['net', 'blk', 'scsi', 'fs', 'generic'];

function common(command: Command): Command {
  return command
    .option('--socket <path>', 'Unix socket of the peer (required)')
    .addOption(
      new Option('--device <type>', 'what kind of device it is (required)').choices(DEVICES),
    )
    .option('--only <ids...>', 'ids of checks, or their beginnings: BE-RING-002 BE-CONFIG')
    .option('--list', 'list the checks and end; needs no other option', false)
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
  throw new InvalidArgumentError('Milliseconds from 10 to 60000 are expected.');
}

function seconds(text: string): number {
  const value = Number(text);
  if (value > 0 && value <= 600) return value;
  throw new InvalidArgumentError('Seconds are expected, more than 0 and up to 600.');
}
