/** `vring record`: stands between a front-end and a back-end and writes down what they say. */
import { Command } from 'commander';
import { VERSION } from '../daemon/version.ts';
import { Recorder, type RecorderEvent, Recording } from '../recorder/index.ts';
import { complain, print, printable, printJson } from './output.ts';

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
      'Listens on --socket, connects to --upstream for each connection, passes everything on\n' +
        'unchanged, and writes it down until SIGINT or SIGTERM.',
    )
    .requiredOption('--socket <path>', 'where to listen')
    .requiredOption('--upstream <path>', 'where to connect')
    .requiredOption('--out <file>', 'JSON lines to write')
    .option('--client', 'the back-end connects to --socket, the front-end listens on --upstream')
    .option('--pcapng <file>', 'also the control messages for Wireshark')
    .option('--rings', 'also kicks and calls, with the indexes of split rings')
    .option('--json', 'events of the recorder as JSON lines on standard output')
    .addHelpText('after', EXAMPLES)
    .action(record);
}

async function record(options: RecordOptions): Promise<void> {
  const { socket, upstream, out, pcapng, rings = false, json = false } = options;
  const connects = options.client === true ? 'back-end' : 'front-end';
  const program = `vring ${VERSION}`;
  const recording = await Recording.create({
    out,
    program,
    socket,
    upstream,
    connects,
    rings,
    ...(pcapng === undefined ? {} : { pcapng }),
  });
  const say = (event: RecorderEvent): void => {
    if (json) printJson(jsonOf(event), 'line');
    else complain(printable(textOf(event)));
  };
  let recorder: Recorder;
  try {
    recorder = new Recorder({ socket, upstream, connects, rings, recording, onEvent: say });
  } catch (error) {
    await recording.close();
    throw error;
  }
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
  else complain(`${sessions} sessions, ${events} events in ${out}${lost(lostRingEvents)}`);
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
      return `who connected was sent away: ${event.reason.message}`;
  }
}

function jsonOf(event: RecorderEvent): object {
  const { kind, ...rest } = event;
  if (event.kind === 'failed') return { event: kind, reason: event.reason.message };
  return { event: kind, ...rest };
}
