/**
 * Replays recordings: a front-end that says what another front-end said, and looks at the answers.
 *
 * Messages go out in their order. One with a recorded answer is followed by waiting for it;
 * others are followed at once by the next. Unless `exact`, features are limited to what this
 * back-end offers, and messages that need a feature which is then missing are left out, because
 * no front-end would send them; both is noted.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { VringError } from '../base/errors.ts';
import type { Difference } from './compare.ts';
import type { RecordingFile } from './recording-file.ts';
import { ReplaySession } from './replay-session.ts';

export type ReplayOptions = {
  /** Where the back-end listens. */
  readonly socket: string;
  /** Whether answers are compared; without, only that they come. */
  readonly compare: boolean;
  /** Send at the recorded times. */
  readonly timing?: boolean;
  /** Adapt nothing. */
  readonly exact?: boolean;
  /** Only this session. */
  readonly session?: number;
};

export type ReplayNote = {
  readonly seq: number;
  readonly name: string;
  readonly kind: 'adapted' | 'skipped';
  readonly text: string;
};

export type SessionReport = {
  readonly number: number;
  readonly sent: number;
  readonly answered: number;
  readonly skipped: number;
  /** Requests on the backend channel: recorded ones may differ, they follow what the rings do. */
  readonly backendRequests: number;
  readonly notes: readonly ReplayNote[];
  readonly differences: readonly Difference[];
};

export type ReplayReport = {
  readonly sessions: readonly SessionReport[];
  /** No difference but those that may be. */
  readonly same: boolean;
};

/** Between sessions: a back-end that serves one front-end at a time lets go of the last one. */
const BETWEEN_SESSIONS_MS = 100;

/** @throws SysError when nobody listens; VringError for a session that is not there. */
export async function replayRecording(
  recording: RecordingFile,
  options: ReplayOptions,
): Promise<ReplayReport> {
  const { session } = options;
  if (session !== undefined && !recording.sessions.has(session)) {
    const there = [...recording.sessions.keys()].join(', ');
    const text = `the recording has no session ${session}; it has ${there}`;
    throw new VringError('ERR_VRING_RECORDING_SESSION', text);
  }
  const sessions: SessionReport[] = [];
  for (const [number, events] of recording.sessions) {
    if (session !== undefined && session !== number) continue;
    if (sessions.length > 0) await sleep(BETWEEN_SESSIONS_MS);
    sessions.push(await new ReplaySession(number, options).run(events));
  }
  const same = sessions.every(({ differences }) => differences.every((each) => each.allowed));
  return { sessions, same: same && sessions.length > 0 };
}
