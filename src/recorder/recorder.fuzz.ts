/**
 * Fuzzes the recorder: the session fuzzer's front-end and back-end, with the recorder between them,
 * rings and backend channel included. It survives, hands on the end of either side, and keeps
 * nothing.
 *
 *   npm run fuzz -- --minutes 10 recorder
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectUnix } from '../sys/index.ts';
import { BackendListener } from '../vhost-user/index.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
} from '../vhost-user/testing/conversation.ts';
import { FakeTarget } from '../vhost-user/testing/fake-target.ts';
import { FuzzFds } from '../vhost-user/testing/fuzz-fds.ts';
import { type FuzzOptions, runFuzzer, within } from '../vhost-user/testing/fuzz-loop.ts';
import { HostileFrontend } from '../vhost-user/testing/hostile-frontend.ts';
import type { Random } from '../vhost-user/testing/random.ts';
import { RawPeer } from '../vhost-user/testing/raw-peer.ts';
import { Recorder } from './recorder.ts';
import { Recording } from './recording.ts';

export type FuzzResult = { readonly iterations: number; readonly events: number };

class RecorderFuzzer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'vring-rec-'));
  readonly #socket = join(this.#folder, 'a');
  readonly #upstream = join(this.#folder, 'b');
  readonly #zoo = new FuzzFds();
  readonly #fds = new ConversationFds(2, 4);
  readonly #target = new FakeTarget();
  readonly #listener = new BackendListener({ path: this.#upstream, target: this.#target });
  #recording!: Recording;
  #recorder!: Recorder;
  #onClosed: (() => void) | null = null;

  async start(): Promise<void> {
    const names = { socket: this.#socket, upstream: this.#upstream, rings: true } as const;
    const out = '/dev/null'; // an hour of it is gigabytes
    const options = { program: 'fuzz', connects: 'front-end', out, pcapng: out } as const;
    this.#recording = await Recording.create({ ...names, ...options });
    this.#recorder = new Recorder({
      ...names,
      recording: this.#recording,
      onEvent: ({ kind }) => {
        if (kind === 'closed') this.#onClosed?.();
      },
    });
  }

  get events(): number {
    return this.#recording.events;
  }

  async attack(random: Random): Promise<void> {
    const closed = this.#nextEnd();
    const socket = connectUnix(this.#socket);
    const listener = this.#listener;
    const scene = {
      target: this.#target,
      get messages(): number {
        return listener.session?.state.messages ?? -1;
      },
    };
    const frontend = new HostileFrontend(socket, random, this.#zoo, scene);
    await within(frontend.run(), 'the recorder did not take its messages');
    await frontend.close();
    await within(closed, 'the recorder did not end the session');
    await this.#forgotten();
    if (this.#recording.failure !== null) throw this.#recording.failure;
  }

  async probe(): Promise<void> {
    const closed = this.#nextEnd();
    const peer = new RawPeer(connectUnix(this.#socket));
    for (const { bytes, fds } of conversation(this.#fds, ORDINARY_PROTOCOL_FEATURES)) {
      await peer.sendRaw(bytes, fds);
      if ((await peer.reply()) === null) throw new Error('the next session ended');
    }
    peer.close();
    await within(closed, 'the recorder did not end the next session');
    await this.#forgotten();
  }

  async close(): Promise<void> {
    await this.#recorder.close();
    await this.#listener.close();
    await this.#recording.close();
    this.#zoo[Symbol.dispose]();
    this.#fds[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true });
  }

  #nextEnd(): Promise<void> {
    return new Promise((resolve) => (this.#onClosed = resolve));
  }

  /** The back-end is ready for the next one, and its target as good as new. */
  async #forgotten(): Promise<void> {
    const over = async (): Promise<void> => {
      while (this.#listener.session !== null) await new Promise((r) => setImmediate(r));
    };
    await within(over(), 'the back-end did not end');
    this.#target.calls.length = 0;
    this.#target.reasons.length = 0;
    this.#target.rarps.length = 0;
    this.#target.cryptoSessions.clear();
  }
}

/** @throws Error naming seed and iteration when something is wrong or left. */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const fuzzer = new RecorderFuzzer();
  await fuzzer.start();
  try {
    const iterations = await runFuzzer(
      options,
      (random) => fuzzer.attack(random),
      () => fuzzer.probe(),
    );
    return { iterations, events: fuzzer.events };
  } finally {
    await fuzzer.close();
  }
}
