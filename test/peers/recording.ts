/** `vring record` and `vring capture`, and what the former wrote. */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { MessageEvent, RecordedEvent, RecordingHeader } from '../../src/recorder/index.ts';
import { type Scratch, waitFor } from './scratch.ts';
import { VringProcess } from './software-guest.ts';
import type { SwitchProcess } from './switch.ts';

export type Recorded = {
  readonly header: RecordingHeader;
  readonly events: readonly RecordedEvent[];
  readonly messages: readonly (RecordedEvent & MessageEvent)[];
};

/** A recorder as a process; `end` stops it and reads what it wrote. */
export async function startRecorder(
  scratch: Scratch,
  upstream: string,
  ...args: string[]
): Promise<{ socket: string; out: string; end: () => Promise<Recorded> }> {
  const [socket, out] = [scratch.path('rec.sock'), scratch.path('out.jsonl')];
  const names = ['--socket', socket, '--upstream', upstream, '--out', out];
  const recorder = scratch.own(new VringProcess('record', ...names, '--json', ...args));
  await recorder.says(/"event":"ready"/);
  const end = async (): Promise<Recorded> => {
    const { code } = await recorder.close();
    equal(code, 0, recorder.err);
    const [first, ...lines] = readFileSync(out, 'utf8').trimEnd().split('\n');
    const events = lines.map((line) => JSON.parse(line) as RecordedEvent);
    const messages = events.filter((each) => each.event === 'message');
    return { header: JSON.parse(first!) as RecordingHeader, events, messages };
  };
  return { socket, out, end };
}

/** Nothing odd between two peers that know the protocol, and every answer has its question. */
export function checkMessages({ messages }: Recorded): void {
  deepEqual(
    messages.flatMap(({ seq, name, problem }) =>
      problem === undefined ? [] : [seq, name, problem],
    ),
    [],
  );
  const replies = messages.filter(({ kind }) => kind === 'reply');
  ok(replies.length >= 3);
  for (const { name, replyTo } of replies) {
    equal(messages.find(({ seq }) => seq === replyTo)?.name, name);
  }
}

/** Starts `vring capture` and waits until the switch says so. */
export async function startCapture(
  vswitch: SwitchProcess,
  port: string,
  ...args: string[]
): Promise<VringProcess> {
  const started = async () =>
    (await vswitch.events()).filter((event) => event.kind === 'capture').length;
  const before = await started();
  const capture = new VringProcess('capture', port, ...args, '--control', vswitch.control);
  await waitFor('the capture', 5000, async () => (await started()) > before);
  return capture;
}
