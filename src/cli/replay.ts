/** `vring replay`: drives a back-end with a recording as its front-end, and compares. */
import { Command, InvalidArgumentError } from 'commander';
import { readRecording, replayRecording, type ReplayReport } from '../recorder/index.ts';
import { counted, pc, print, printable, printJson } from './output.ts';

type ReplayCommandOptions = {
  readonly socket: string;
  readonly compare?: boolean;
  readonly timing?: boolean;
  readonly exact?: boolean;
  readonly session?: number;
  readonly json?: boolean;
};

const EXAMPLES = `
Examples:
  vring replay vm0.jsonl --socket /run/vring/vm1.sock            # does it get through?
  vring replay vm0.jsonl --socket /tmp/testpmd.sock --compare    # where do its answers differ?
  vring replay vm0.jsonl --socket b.sock --compare --json | jq '.sessions[].differences'

Exit status: 0 the back-end went through it (and, with --compare, answered the same), 1 it did not,
2 wrong usage. What may differ and what is not replayed: docs/recorder.md.`;

export function replayCommand(): Command {
  return new Command('replay')
    .summary('drive a back-end with a recording and compare its answers')
    .description(
      'Sends the front-end messages of a recording to a back-end, with substitutes for their fds.',
    )
    .argument('<file>', 'recording of vring record')
    .requiredOption('--socket <path>', 'where the back-end listens (required)')
    .option('--compare', 'compare its answers, field by field')
    .option('--timing', 'send at the recorded times instead of at once')
    .option('--exact', 'send features as recorded, also those that this back-end does not offer')
    .option('--session <number>', 'only this session of the recording', whole)
    .option('--json', 'JSON instead of text')
    .addHelpText('after', EXAMPLES)
    .action(replay);
}

function whole(text: string): number {
  const value = Number(text);
  if (text !== '' && Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError(`"${text}" is not a number from 1 on`);
}

async function replay(file: string, options: ReplayCommandOptions): Promise<void> {
  const recording = await readRecording(file);
  const { socket, compare = false, timing = false, exact = false, session, json } = options;
  const report = await replayRecording(recording, {
    socket,
    compare,
    timing,
    exact,
    ...(session === undefined ? {} : { session }),
  });
  if (json === true) printJson(report);
  else print(textOf(report, compare));
  process.exitCode = report.same ? 0 : 1;
}

function textOf(report: ReplayReport, compare: boolean): string {
  const lines: string[] = [];
  for (const session of report.sessions) {
    const { number, sent, answered, skipped, backendRequests } = session;
    const events = backendRequests === 0 ? '' : `, ${backendRequests} requests of the back-end`;
    const counts = `${counted(sent, 'message')} sent, ${answered} answered, ${skipped} skipped`;
    lines.push(`session ${number}: ${counts}${events}`);
    for (const { seq, name, kind, text } of session.notes) {
      lines.push(pc.dim(`  #${seq} ${name}: ${kind}: ${printable(text)}`));
    }
    for (const difference of session.differences) {
      const { seq, name, field, recorded, replayed, allowed } = difference;
      const line = `  #${seq} ${name}: ${field}: recorded ${recorded}, now ${replayed}`;
      lines.push(
        allowed === null
          ? pc.red(printable(line))
          : pc.dim(printable(`${line} (may differ: ${allowed})`)),
      );
    }
  }
  const count = report.sessions.flatMap((each) => each.differences).filter((d) => !d.allowed);
  const verdict = compare ? 'the answers are the same' : 'the back-end went through it';
  lines.push(report.same ? pc.green(verdict) : pc.red(counted(count.length, 'difference')));
  return lines.join('\n');
}
