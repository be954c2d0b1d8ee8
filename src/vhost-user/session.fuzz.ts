/**
 * Fuzzes the back-end session with conversations that are generated from the table: what is legal
 * now, by its gates and rules, with fds of the right kind, and then changed in order, size, flags,
 * fds, fields and timing. Whatever comes, the process survives, the session ends, no fd and no
 * mapping is left, and the next session works.
 *
 *   npm run fuzz -- --minutes 60 --seed 7 session
 *   npm run fuzz -- --seed 7 --only-iteration 1234 session
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { VringError } from '../base/errors.ts';
import { type Fd, socketPair } from '../sys/index.ts';
import { VHOST_USER_REPLY_MASK } from '../wire/vhost-user.ts';
import { BackendSession, type SessionOptions } from './backend-session.ts';
import type { MessageEvent } from './diagnostics.ts';
import type { SessionSnapshot } from './session-snapshot.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
} from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { type Counts, count, type FuzzOptions, runFuzzer, within } from './testing/fuzz-loop.ts';
import { FuzzFds } from './testing/fuzz-fds.ts';
import { HostileFrontend } from './testing/hostile-frontend.ts';
import type { Random } from './testing/random.ts';
import { RawPeer } from './testing/raw-peer.ts';

export type FuzzResult = {
  readonly iterations: number;
  readonly messages: number;
  /** How often a session went on with another target. */
  readonly handOvers: number;
  /** How often sessions ended for each reason, `none` being an orderly end. */
  readonly reasons: Readonly<Record<string, number>>;
  /** How often messages were refused without an end of the session. */
  readonly refusals: Readonly<Record<string, number>>;
  /** How often each message was handled without being refused. */
  readonly accepted: Readonly<Record<string, number>>;
};

const MESSAGES = 'vring:vhost-user:message';

/** A session that may be handed over from target to target, as from process to process. */
class SessionScene {
  session: BackendSession;
  readonly targets: FakeTarget[] = [new FakeTarget()];
  readonly #options: SessionOptions;
  #earlier = 0;

  constructor(socket: Fd, options: SessionOptions) {
    this.#options = options;
    this.session = new BackendSession(socket, this.target, options);
  }

  get target(): FakeTarget {
    return this.targets.at(-1)!;
  }

  get messages(): number {
    return this.#earlier + this.session.state.messages;
  }

  /** Suspends; then the session goes on here, or in another target. */
  async disturb(random: Random): Promise<void> {
    const before = this.session;
    let snapshot: SessionSnapshot;
    try {
      snapshot = await before.suspend();
    } catch (error) {
      if (error instanceof VringError && error.code !== 'ERR_VRING_ASSERTION') return;
      throw error;
    }
    if (random.once(3)) {
      await before.resume();
      return;
    }
    const state = JSON.parse(JSON.stringify(snapshot.state)) as SessionSnapshot['state'];
    const fds = snapshot.fds.map((fd) => fd.dup());
    this.#earlier += before.state.messages;
    await before.surrender();
    this.targets.push(new FakeTarget());
    this.session = await BackendSession.restore({ state, fds }, this.target, this.#options);
    await this.session.resume();
  }
}

class SessionFuzzer {
  readonly #zoo = new FuzzFds();
  readonly #fds = new ConversationFds(2, 4);
  readonly reasons: Counts = {};
  readonly refusals: Counts = {};
  readonly accepted: Counts = {};
  messages = 0;
  handOvers = 0;
  readonly #options: SessionOptions = {
    onRefused: ({ code }) => {
      this.#handling = null;
      count(this.refusals, code);
    },
    onChange: () => {
      if (this.#handling !== null) count(this.accepted, this.#handling);
    },
  };
  /** The request that a session of ours has now. */
  #handling: string | null = null;

  constructor() {
    subscribe(MESSAGES, this.#received);
  }

  /** One hostile front-end. */
  async attack(random: Random): Promise<void> {
    const [ours, theirs] = socketPair();
    const scene = new SessionScene(ours, this.#options);
    const frontend = new HostileFrontend(theirs, random, this.#zoo, scene);
    await within(frontend.run(), 'the session did not take its messages');
    await frontend.close();
    const reason = await within(scene.session.closed, 'the session did not end');
    this.messages += scene.messages;
    this.handOvers += scene.targets.length - 1;
    for (const { running, reasons } of scene.targets) {
      if (running.size > 0) throw new Error('rings run without a session');
      if (reasons.length !== 1) throw new Error('a target was not told of the end, once');
    }
    if (reason === null) count(this.reasons, 'none');
    else if (!(reason instanceof VringError) || reason.code === 'ERR_VRING_ASSERTION') throw reason;
    else count(this.reasons, reason.code);
  }

  /** The session after an attack must be as good as new. */
  async probe(): Promise<void> {
    const [ours, theirs] = socketPair();
    const session = new BackendSession(ours, new FakeTarget());
    const peer = new RawPeer(theirs);
    for (const { bytes, fds } of conversation(this.#fds, ORDINARY_PROTOCOL_FEATURES)) {
      await peer.sendRaw(bytes, fds);
      if ((await peer.reply()) === null) {
        throw new Error(`the next session ended: ${await session.closed}`);
      }
    }
    if (session.state.refusals > 0) throw session.state.lastRefusal!;
    peer.close();
    const reason = await within(session.closed, 'the next session did not end');
    if (reason !== null) throw reason;
  }

  readonly #received = (event: unknown): void => {
    const { direction, name, flags } = event as MessageEvent;
    const isRequest = direction === 'received' && (flags & VHOST_USER_REPLY_MASK) === 0;
    if (isRequest && !name.startsWith('VHOST_USER_BACKEND_')) this.#handling = name;
  };

  close(): void {
    unsubscribe(MESSAGES, this.#received);
    this.#zoo[Symbol.dispose]();
    this.#fds[Symbol.dispose]();
  }
}

/**
 * Runs for `seconds`. What is sent depends on `seed` alone, timing does not.
 * @throws Error naming seed and iteration when an invariant does not hold.
 */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const fuzzer = new SessionFuzzer();
  try {
    const iterations = await runFuzzer(
      options,
      (random) => fuzzer.attack(random),
      () => fuzzer.probe(),
    );
    const { reasons, refusals, accepted, messages, handOvers } = fuzzer;
    return { iterations, messages, handOvers, reasons, refusals, accepted };
  } finally {
    fuzzer.close();
  }
}
