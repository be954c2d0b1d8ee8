/**
 * Fuzzes the back-end session: normal conversations with mutations, and plain noise with fds.
 * Whatever comes, the process survives, the session ends, no fd and no mapping is left, and
 * the next session works.
 *
 *   node src/vhost-user/session.fuzz.ts --seconds 60 --seed 7
 */
import { parseArgs } from 'node:util';
import { VringError } from '../base/errors.ts';
import { reservedRanges } from '../memory/index.ts';
import { createMemfd, type Fd, openFdCount, socketPair, truncate } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import { FRONT_END_MESSAGES } from './message-table.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
  region,
  singleRegion,
  type Step,
} from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { encodeMessage, RawPeer } from './testing/raw-peer.ts';

export type FuzzOptions = { readonly seconds: number; readonly seed: number };
export type FuzzResult = {
  readonly iterations: number;
  /** How often sessions ended for each reason, `none` being an orderly end. */
  readonly reasons: Readonly<Record<string, number>>;
  /** How often messages were refused without an end of the session. */
  readonly refusals: Readonly<Record<string, number>>;
};

/** Small, fast, good enough, and the same everywhere: mulberry32. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 <= n < below. */
  next(below: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.next(list.length)]!;
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.next(256));
  }
}

const INTERESTING = [
  0n,
  1n,
  0xffn,
  0x100n,
  0x1000n,
  0x7fffffffn,
  0xffffffffn,
  2n ** 53n,
  2n ** 64n - 1n,
];

/** fds of every kind that a front-end might send. */
class FdZoo {
  readonly normal = new ConversationFds(2, 4);
  readonly #more: Fd[];

  constructor() {
    const shrunk = createMemfd('shrunk', 0x100000);
    truncate(shrunk.number, 4096);
    this.#more = [shrunk, ...socketPair()];
  }

  pick(random: Random): number {
    const { memory, events } = this.normal;
    return random.pick([...memory, ...events, ...this.#more]).number;
  }

  [Symbol.dispose](): void {
    this.normal[Symbol.dispose]();
    for (const fd of this.#more) fd.close();
  }
}

/** A message of a kind that exists, with a payload of the right size and odd contents. */
function plausible(random: Random, zoo: FdZoo): Step {
  const entry = random.pick([...FRONT_END_MESSAGES.values()]);
  const { minBytes, maxBytes } = entry.payload;
  const payload = new Uint8Array(minBytes + random.next(maxBytes - minBytes + 1));
  const view = new DataView(payload.buffer);
  for (let at = 0; at + 8 <= payload.length; at += 8) {
    if (random.next(2)) view.setBigUint64(at, random.pick(INTERESTING), true);
    else view.setUint32(at, random.next(8), true);
  }
  const [min, max] = entry.fds;
  const fds = Array.from({ length: min + random.next(max - min + 1) }, () => zoo.pick(random));
  return { bytes: encodeMessage(entry.id, payload, random.next(2) ? 9 : 1), fds, replies: false };
}

/** Slots come and go while rings may run. */
function slotMessage(random: Random, zoo: FdZoo): Step {
  const payload = singleRegion(region(random.next(4)));
  const add = random.next(2) === 1;
  const request = add ? wire.VHOST_USER_ADD_MEM_REG : wire.VHOST_USER_REM_MEM_REG;
  const fds = add ? [random.pick(zoo.normal.memory).number] : [];
  return { bytes: encodeMessage(request, payload, 9), fds, replies: false };
}

function mutate(random: Random, step: Step, zoo: FdZoo): Step {
  const bytes = step.bytes.slice();
  switch (random.next(6)) {
    case 0:
      bytes[random.next(bytes.length)] = random.next(256);
      break;
    case 1:
      bytes[random.next(bytes.length)]! ^= 1 << random.next(8);
      break;
    case 2:
      return { ...step, bytes: bytes.subarray(0, random.next(bytes.length)) };
    case 3:
      return { ...step, fds: Array.from({ length: random.next(10) }, () => zoo.pick(random)) };
    case 4:
      if (bytes.length >= 20) {
        const at = 12 + 8 * random.next((bytes.length - 12) >> 3);
        new DataView(bytes.buffer).setBigUint64(at, random.pick(INTERESTING), true);
      }
      break;
    default:
      return { ...step, bytes: random.bytes(random.next(64)) };
  }
  return { ...step, bytes };
}

function makeInput(random: Random, zoo: FdZoo): Step[] {
  const steps = conversation(zoo.normal, ORDINARY_PROTOCOL_FEATURES).map((s) => ({
    ...s,
    replies: false,
  }));
  const edits = random.next(6);
  for (let i = 0; i < edits; i++) {
    const at = random.next(steps.length);
    switch (random.next(6)) {
      case 0:
        steps.splice(at, 1);
        break;
      case 1:
        steps.splice(at, 0, plausible(random, zoo));
        break;
      case 2:
        steps.splice(at, 0, slotMessage(random, zoo));
        break;
      case 3:
        steps.splice(at, 0, random.pick(steps));
        break;
      case 4: {
        const other = random.next(steps.length);
        [steps[at], steps[other]] = [steps[other]!, steps[at]!];
        break;
      }
      default:
        steps[at] = mutate(random, steps[at]!, zoo);
    }
    if (steps.length === 0) break;
  }
  return steps;
}

/** Waits until the session has handled what was sent: it ended, or nothing moves any more. */
async function settle(session: BackendSession): Promise<void> {
  const ended = { yet: false };
  void session.closed.then(() => (ended.yet = true));
  let quiet = 0;
  let last = -1;
  while (quiet < 4 && !ended.yet) {
    await new Promise((resolve) => setImmediate(resolve));
    const { messages } = session.state;
    quiet = messages === last ? quiet + 1 : 0;
    last = messages;
  }
}

/** One hostile front-end. Returns the code of the session's end. */
async function attack(
  random: Random,
  zoo: FdZoo,
  target: FakeTarget,
  refusals: Record<string, number>,
): Promise<string> {
  const [ours, theirs] = socketPair();
  const session = new BackendSession(ours, target, {
    onRefused: ({ code }) => (refusals[code] = (refusals[code] ?? 0) + 1),
  });
  const peer = new RawPeer(theirs);
  const drain = (async () => {
    while ((await peer.reply()) !== null);
  })().catch(() => undefined); // replies of a session that a mutation confused, or a reset
  for (const { bytes, fds } of makeInput(random, zoo)) {
    const split = random.next(4) === 0 ? random.next(bytes.length + 1) : 0;
    if (split > 0) await peer.sendRaw(bytes.subarray(0, split), fds);
    if (!(await peer.sendRaw(bytes.subarray(split), split > 0 ? [] : fds))) break;
  }
  if (random.next(8) > 0) await settle(session);
  peer.close();
  const reason = await session.closed;
  await drain;
  if (reason === null) return 'none';
  if (!(reason instanceof VringError) || reason.code === 'ERR_VRING_ASSERTION') throw reason;
  return reason.code;
}

/** The session after an attack must be as good as new. */
async function probe(zoo: FdZoo, target: FakeTarget): Promise<void> {
  const [ours, theirs] = socketPair();
  const session = new BackendSession(ours, target);
  const peer = new RawPeer(theirs);
  for (const { bytes, fds } of conversation(zoo.normal, ORDINARY_PROTOCOL_FEATURES)) {
    await peer.sendRaw(bytes, fds);
    if ((await peer.reply()) === null)
      throw new Error(`the next session ended: ${await session.closed}`);
  }
  if (session.state.refusals > 0) throw session.state.lastRefusal!;
  peer.close();
  const reason = await session.closed;
  if (reason !== null) throw reason;
}

/**
 * Runs for `seconds`. The input depends on `seed` alone, timing does not.
 * @throws Error naming seed and iteration when an invariant does not hold.
 */
export async function fuzz({ seconds, seed }: FuzzOptions): Promise<FuzzResult> {
  const end = performance.now() + seconds * 1000;
  using zoo = new FdZoo();
  const target = new FakeTarget();
  await probe(zoo, target); // opens what the process keeps, such as the event loop's own fds
  const before = openFdCount();
  const ranges = reservedRanges();
  const reasons: Record<string, number> = {};
  const refusals: Record<string, number> = {};
  let iterations = 0;
  while (performance.now() < end) {
    // Each iteration has a seed of its own, so that one can be run again without the others.
    const random = new Random(seed + Math.imul(iterations, 0x9e3779b1));
    try {
      const code = await attack(random, zoo, target, refusals);
      reasons[code] = (reasons[code] ?? 0) + 1;
      if (iterations % 16 === 0) await probe(zoo, target);
      const now = openFdCount();
      if (now !== before) throw new Error(`${now} fds are open, ${before} were before`);
      if (reservedRanges() !== ranges) throw new Error('memory of a session is still mapped');
      if (target.running.size > 0) throw new Error('rings run without a session');
    } catch (cause) {
      throw new Error(`seed ${seed}, iteration ${iterations}: ${String(cause)}`, { cause });
    }
    target.calls.length = 0;
    target.reasons.length = 0;
    iterations++;
  }
  return { iterations, reasons, refusals };
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '10' }, seed: { type: 'string' } },
  });
  const seed = Number(values.seed ?? Date.now() % 2 ** 31);
  console.log(`vhost-user session fuzz: seed ${seed}, ${values.seconds} s`);
  const { iterations, reasons, refusals } = await fuzz({ seconds: Number(values.seconds), seed });
  console.log(`${iterations} sessions; how they ended:`);
  console.table(reasons);
  console.log('messages that were refused by a reply:');
  console.table(refusals);
}
