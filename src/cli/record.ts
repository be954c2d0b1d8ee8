/** `vring record`: stands between a front-end and a back-end and writes down what they say. */
import { rmSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command } from 'commander';
import { VERSION } from '../daemon/version.ts';
import { Recorder, type RecorderEvent, Recording } from '../recorder/index.ts';
import { listenUnix } from '../sys/index.ts';
import { explain } from './explain.ts';
import { complain, counted, print, printable, printJson, UsageError } from './output.ts';

type RecordOptions = {
  readonly socket: string;
  readonly upstream: string;
  readonly out: string;
  readonly client?: boolean;
  readonly pcapng?: string;
  readonly rings?: boolean;
  readonly json?: boolean;
};

const EXAMPLES = `
Examples:
  QEMU connects to /tmp/rec.sock instead of the switch's socket:
    vring record --socket /tmp/rec.sock --upstream /run/vring/vm0.sock --out vm0.jsonl
  QEMU listens (server=on) at /tmp/qemu.sock, the back-end connects to /tmp/rec.sock:
    vring record --socket /tmp/rec.sock --upstream /tmp/qemu.sock --client --out vm0.jsonl
  Kicks and calls too, and a file for Wireshark:
    vring record --socket a.sock --upstream b.sock --out x.jsonl --rings --pcapng x.pcapng
  What was said:
    jq -r 'select(.event == "message") | "\\(.seq) \\(.from) \\(.name) \\(.payload)"' x.jsonl

The format is described in docs/recorder.md; vring replay drives a back-end with it.`;

export function recordCommand(): Command {
  return new Command('record')
    .summary('stand between a front-end and a back-end and write down what they say')
    .description(
      'Listens on --socket, connects to --upstream for each connection, passes everything on ' +
        'unchanged, and writes it down until SIGINT or SIGTERM.',
    )
    .requiredOption('--socket <path>', 'where to listen (required)')
    .requiredOption('--upstream <path>', 'where to connect (required)')
    .requiredOption('--out <file>', 'JSON lines to write (required)')
    .option('--client', 'the back-end connects to --socket, the front-end listens on --upstream')
    .option('--pcapng <file>', 'the messages for Wireshark, too')
    .option('--rings', 'also kicks and calls, with the indexes of split rings')
    .option('--json', 'events of the recorder as JSON lines on standard output')
    .addHelpText('after', EXAMPLES)
    .action(record);
}

async function record(options: RecordOptions): Promise<void> {
  const { socket, upstream, out, pcapng, rings = false, json = false } = options;
  const connects = options.client === true ? 'back-end' : 'front-end';
  checkPaths(options);
  const program = `vring ${VERSION}`;
  // A socket that is in use must not cost the recording that is being made there.
  const listener = listenUnix(socket);
  let recording: Recording;
  try {
    const files = { out, ...(pcapng === undefined ? {} : { pcapng }) };
    recording = await Recording.create({ ...files, program, socket, upstream, connects, rings });
  } catch (error) {
    listener.close();
    rmSync(socket, { force: true });
    throw error;
  }
  const say = (event: RecorderEvent): void => {
    if (json) printJson(jsonOf(event), 'line');
    else complain(printable(textOf(event)));
  };
  const where = { socket, listener, upstream, connects } as const;
  const recorder = new Recorder({ ...where, rings, recording, onEvent: say });
  if (json) printJson({ event: 'ready', socket, upstream, out }, 'line');
  else print(`vring: recording ${socket} to ${upstream} in ${out}`);
  await new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.once(signal, () => resolve());
    }
  });
  await recorder.close();
  const { sessions } = recorder;
  const { events, lostRingEvents } = recording;
  await recording.close();
  if (json) printJson({ event: 'ended', sessions, events, lostRingEvents }, 'line');
  else {
    const counts = `${counted(sessions, 'session')}, ${counted(events, 'event')}`;
    complain(`${counts} in ${out}${lost(lostRingEvents)}`);
  }
}

/** One path for two things would connect the recorder to itself, or write two files into one. */
function checkPaths({ socket, upstream, out, pcapng }: RecordOptions): void {
  if (resolve(socket) === resolve(upstream)) {
    const text = 'the recorder listens there; give the socket of the other side';
    throw new UsageError(`--upstream: ${upstream} is --socket, too: ${text}`);
  }
  if (pcapng !== undefined && resolve(pcapng) === resolve(out)) {
    throw new UsageError(`--pcapng: ${pcapng} is --out, too; give two files`);
  }
}

const lost = (count: number): string =>
  count === 0 ? '' : `; ${count} ring events are missing, the disk was too slow`;

function textOf(event: RecorderEvent): string {
  switch (event.kind) {
    case 'connected':
      return `session ${event.session}: connected`;
    case 'closed':
      return `session ${event.session}: closed by the ${event.end.by}: ${event.end.reason}`;
    case 'failed':
      return `who connected was sent away: ${explain(event.reason)}`;
  }
}

function jsonOf(event: RecorderEvent): object {
  const { kind, ...rest } = event;
  if (event.kind === 'failed') return { event: kind, reason: explain(event.reason) };
  return { event: kind, ...rest };
}
