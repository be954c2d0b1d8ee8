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
import { socketPair } from '../sys/index.ts';
import { VHOST_USER_REPLY_MASK } from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import type { MessageEvent } from './diagnostics.ts';
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
  /** How often sessions ended for each reason, `none` being an orderly end. */
  readonly reasons: Readonly<Record<string, number>>;
  /** How often messages were refused without an end of the session. */
  readonly refusals: Readonly<Record<string, number>>;
  /** How often each message was handled without being refused. */
  readonly accepted: Readonly<Record<string, number>>;
};

const MESSAGES = 'vring:vhost-user:message';

class SessionFuzzer {
  readonly #zoo = new FuzzFds();
  readonly #fds = new ConversationFds(2, 4);
  readonly reasons: Counts = {};
  readonly refusals: Counts = {};
  readonly accepted: Counts = {};
  messages = 0;
  /** The request that a session of ours has now. */
  #handling: string | null = null;

  constructor() {
    subscribe(MESSAGES, this.#received);
  }

  /** One hostile front-end. */
  async attack(random: Random): Promise<void> {
    const target = new FakeTarget();
    const [ours, theirs] = socketPair();
    const session = new BackendSession(ours, target, {
      onRefused: ({ code }) => {
        this.#handling = null;
        count(this.refusals, code);
      },
      onChange: () => {
        if (this.#handling !== null) count(this.accepted, this.#handling);
      },
    });
    const frontend = new HostileFrontend(theirs, random, target, this.#zoo, () => session.state);
    await within(frontend.run(), 'the session did not take its messages');
    await frontend.close();
    const reason = await within(session.closed, 'the session did not end');
    this.messages += session.state.messages;
    if (target.running.size > 0) throw new Error('rings run without a session');
    if (target.reasons.length !== 1) throw new Error('the target was not told of the end, once');
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
    const { reasons, refusals, accepted, messages } = fuzzer;
    return { iterations, messages, reasons, refusals, accepted };
  } finally {
    fuzzer.close();
  }
}
