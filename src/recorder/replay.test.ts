/** Recordings replayed against our own back-end: the same, and different. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { reservedRanges } from '../memory/index.ts';
import { connectUnix, openFdCount } from '../sys/index.ts';
import { BackendListener } from '../vhost-user/index.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
} from '../vhost-user/testing/conversation.ts';
import { FakeTarget } from '../vhost-user/testing/fake-target.ts';
import { RawPeer } from '../vhost-user/testing/raw-peer.ts';
import { readRecording } from './recording-file.ts';
import { Recorder } from './recorder.ts';
import { Recording } from './recording.ts';
import { replayRecording, type ReplayReport } from './replay.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-replay-'));
const [socket, upstream, out] = ['a', 'b', 'out.jsonl'].map((name) => join(folder, name)) as [
  string,
  string,
  string,
];
after(() => rmSync(folder, { recursive: true }));

/** Records two sessions of the usual conversation. */
before(async () => {
  using fds = new ConversationFds();
  const target = new FakeTarget();
  const listener = new BackendListener({ path: upstream, target });
  const names = { program: 'test', socket, upstream, connects: 'front-end', rings: false } as const;
  const recording = await Recording.create({ out, ...names });
  const recorder = new Recorder({ socket, upstream, recording });
  for (let session = 0; session < 2; session++) {
    const peer = new RawPeer(connectUnix(socket));
    for (const step of conversation(fds, ORDINARY_PROTOCOL_FEATURES)) {
      await peer.sendRaw(step.bytes, step.fds);
      assert.ok(await peer.reply());
    }
    peer.close();
    while (target.reasons.length === session) await sleep(1);
  }
  await recorder.close();
  await recording.close();
  await listener.close();
});

async function replayOn(
  target: FakeTarget,
  options: { exact?: boolean; timing?: boolean; session?: number } = {},
): Promise<ReplayReport> {
  const listener = new BackendListener({ path: upstream, target });
  try {
    return await replayRecording(await readRecording(out), {
      socket: upstream,
      compare: true,
      ...options,
    });
  } finally {
    await listener.close();
  }
}

test('the back-end that was recorded answers the same, and nothing is left open', async () => {
  await replayOn(new FakeTarget());
  const fds = openFdCount();
  const target = new FakeTarget();
  const report = await replayOn(target);
  assert.deepEqual(
    report.sessions.flatMap(({ differences }) => differences),
    [],
  );
  assert.equal(report.same, true);
  assert.equal(report.sessions.length, 2);
  assert.ok(report.sessions.every(({ sent, answered, skipped }) => sent === answered && !skipped));
  assert.deepEqual(target.reasons, [null, null]);
  assert.equal(openFdCount(), fds);
  assert.equal(reservedRanges(), 0);
});

test('a session that is not in the recording is an error that says which are', async () => {
  const text = /has no session 7; it has 1, 2$/;
  await assert.rejects(replayOn(new FakeTarget(), { session: 7 }), text);
});

class OtherTarget extends FakeTarget {
  override readonly config = new Uint8Array(16).fill(9);
}

test('another configuration space is a difference, named by message and field', async () => {
  const report = await replayOn(new OtherTarget(), { session: 1 });
  assert.equal(report.same, false);
  const [{ differences }] = report.sessions as [ReplayReport['sessions'][number]];
  assert.deepEqual(
    differences.map(({ name, field, recorded, replayed, allowed }) => {
      return [name, field, recorded, replayed, allowed];
    }),
    [['VHOST_USER_GET_CONFIG', 'data', '0001020304050607', '0909090909090909', null]],
  );
});

class LesserTarget extends FakeTarget {
  override readonly protocolFeatures = FakeTarget.prototype === undefined ? 0n : 9n; // MQ, REPLY_ACK
}

test('features that are not offered are left out, with what needs them, and noted', async () => {
  const report = await replayOn(new LesserTarget(), { session: 1 });
  const [{ notes, differences, skipped }] = report.sessions as [ReplayReport['sessions'][number]];
  assert.ok(skipped > 3);
  assert.match(notes[0]!.text, /^without bits 0x/);
  assert.ok(notes.some(({ name }) => name === 'VHOST_USER_GET_STATUS'));
  assert.deepEqual(
    [...new Set(differences.map(({ name }) => name))],
    // Without LOG_SHMFD there is no VHOST_F_LOG_ALL.
    ['VHOST_USER_GET_FEATURES', 'VHOST_USER_GET_PROTOCOL_FEATURES'],
  );
});

test('exactly as recorded, a refusal shows', async () => {
  const report = await replayOn(new LesserTarget(), { session: 1, exact: true });
  const [{ differences, skipped }] = report.sessions as [ReplayReport['sessions'][number]];
  assert.equal(skipped, 0);
  assert.equal(differences.at(-1)!.field, 'answer');
  assert.match(differences.at(-1)!.replayed, /closed the connection/);
});

test('ring progress may differ', async () => {
  const target = new FakeTarget();
  target.progress = 3;
  const report = await replayOn(target, { session: 2 });
  assert.ok(report.sessions[0]!.differences.every(({ allowed }) => allowed !== null));
  assert.equal(report.same, true);
});

test('recordings that are none, of another version, or cut', async () => {
  const path = join(folder, 'bad.jsonl');
  const lines = readFileSync(out, 'utf8').split('\n');
  const says = async (text: string, pattern: RegExp): Promise<void> => {
    writeFileSync(path, text);
    await assert.rejects(readRecording(path), {
      code: 'ERR_VRING_RECORDING_FILE',
      message: pattern,
    });
  };
  await says('hello\n', /line 1 is no JSON object/);
  await says('{}\n', /no header of a vring-recording/);
  await says('{"format":"vring-recording","version":7}\n', /version 7, expected 1/);
  await says(`${lines[0]}\n`, /nobody connected/);
  await says(`${lines[0]}\n{"seq":1,"time":1}\n`, /line 2: session is undefined/);
  await says(`${lines[0]}\n${lines[2]!.replace('"hex":"', '"hex":"zz')}\n`, /not hexadecimal/);
  await assert.rejects(readRecording(join(folder, 'none')), /there is no such file/);
  writeFileSync(path, lines.slice(0, 6).join('\n') + '\n{"seq":');
  assert.equal((await readRecording(path)).sessions.get(1)!.length, 5);
});
