/** Reads a recording back. The file may be cut anywhere: what is complete counts. */
import { readFile, stat } from 'node:fs/promises';
import { messageOf, VringError } from '../base/errors.ts';
import { MAX_RECORDING_BYTES } from './limits.ts';
import {
  type RecordedEvent,
  RECORDING_FORMAT,
  RECORDING_VERSION,
  type RecordingHeader,
} from './recorded-event.ts';

export type RecordingFile = {
  readonly header: RecordingHeader;
  /** Events of each session in their order. */
  readonly sessions: ReadonlyMap<number, readonly RecordedEvent[]>;
};

/** @throws VringError ERR_VRING_RECORDING_FILE naming file, line and what is wrong. */
export async function readRecording(path: string): Promise<RecordingFile> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > MAX_RECORDING_BYTES) {
      throw new Error(`${size} bytes, expected at most ${MAX_RECORDING_BYTES}`);
    }
    text = await readFile(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const known = { ENOENT: 'there is no such file', EISDIR: 'it is a folder, not a recording' };
    throw bad(path, known[code as keyof typeof known] ?? messageOf(cause), cause);
  }
  if (text === '') throw bad(path, 'it is empty; was it made by vring record?');
  const lines = text.split('\n');
  const isWhole = lines.pop() === ''; // the last line of a recorder that was killed is cut
  const header = parseLine(path, 1, lines[0] ?? '') as unknown as RecordingHeader;
  if (header.format !== RECORDING_FORMAT) {
    throw bad(path, `line 1 is no header of a ${RECORDING_FORMAT}; was it made by vring record?`);
  }
  if (header.version !== RECORDING_VERSION) {
    const problem = `version ${String(header.version)}, expected ${RECORDING_VERSION}`;
    throw bad(path, `${problem}; replay it with the vring that made it`);
  }
  const sessions = new Map<number, RecordedEvent[]>();
  for (let i = 1; i < lines.length; i++) {
    const event = checkEvent(path, i + 1, parseLine(path, i + 1, lines[i]!));
    const events = sessions.get(event.session) ?? [];
    sessions.set(event.session, events);
    events.push(event);
  }
  if (sessions.size === 0) {
    const why = isWhole ? 'nobody connected' : 'it is cut short';
    throw bad(path, `there is no session in it: ${why}`);
  }
  return { header, sessions };
}

function parseLine(path: string, line: number, text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  } catch {
    // said below
  }
  const hint = line === 1 ? '; was it made by vring record?' : '';
  throw bad(path, `line ${line} is no JSON object${hint}`);
}

/** What the replayer relies on; everything else is for people. */
function checkEvent(path: string, line: number, value: Record<string, unknown>): RecordedEvent {
  for (const name of ['seq', 'time', 'session'] as const) {
    if (Number.isSafeInteger(value[name])) continue;
    throw bad(path, `line ${line}: ${name} is ${JSON.stringify(value[name])}, expected a number`);
  }
  if (value['event'] === 'message' || value['event'] === 'raw') {
    const { hex, fds } = value;
    if (typeof hex !== 'string' || hex.length % 2 !== 0 || /[^0-9a-f]/.test(hex)) {
      throw bad(path, `line ${line}: hex is not hexadecimal`);
    }
    if (value['event'] === 'message' && hex.length < 24) {
      throw bad(path, `line ${line}: hex has ${hex.length / 2} bytes, a header has 12`);
    }
    const isDescription = (each: unknown): boolean =>
      typeof each === 'object' && each !== null && 'kind' in each && 'identity' in each;
    if (!Array.isArray(fds) || !fds.every(isDescription)) {
      throw bad(path, `line ${line}: fds is not a list of descriptions`);
    }
  }
  return value as unknown as RecordedEvent;
}

function bad(path: string, problem: string, cause?: unknown): VringError {
  return new VringError('ERR_VRING_RECORDING_FILE', `${path}: ${problem}`, { cause });
}
