/** One session of a replay. */
import { setTimeout as sleep } from 'node:timers/promises';
import { connectUnix, createEventfd, type Fd, signalEventfd, socketPair } from '../sys/index.ts';
import { REQUEST } from '../vhost-user/index.ts';
import {
  PROTOCOL_FEATURE_NAMES,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
  VhostUserHeader,
} from '../wire/vhost-user.ts';
import { type Answer, compareAnswers, type Difference } from './compare.ts';
import { decodeMessage } from './decode.ts';
import { SETTLE_MS } from './limits.ts';
import type { PlacedFd } from './message-reader.ts';
import type { MessageEvent, RawEvent, RecordedEvent } from './recorded-event.ts';
import { ReplayFds } from './replay-fds.ts';
import { ReplayMemory } from './replay-memory.ts';
import { type ReceivedMessage, ReplayPeer } from './replay-peer.ts';
import type { ReplayNote, ReplayOptions, SessionReport } from './replay.ts';

type Recorded<T> = RecordedEvent & T;

/** A message that goes out; its fds are made when it does. */
type Outgoing = {
  readonly id: number;
  readonly bytes: Uint8Array;
  readonly fds: () => PlacedFd[];
};

const HEADER = VhostUserHeader.size;

export class ReplaySession {
  readonly #number: number;
  readonly #options: ReplayOptions;
  readonly #fds = new ReplayFds();
  readonly #memory = new ReplayMemory();
  readonly #differences: Difference[] = [];
  readonly #notes: ReplayNote[] = [];
  readonly #kicks = new Map<number, Fd>();
  readonly #channels: ReplayPeer[] = [];
  #peer!: ReplayPeer;
  #lastSeq = 0;
  #offered: bigint | null = null;
  #offeredProtocol: bigint | null = null;
  #acked = 0n;
  #inflight: { readonly fd: Fd; readonly payload: Uint8Array } | null = null;
  #sent = 0;
  #answered = 0;
  #skipped = 0;
  #backendRequests = 0;

  constructor(number: number, options: ReplayOptions) {
    this.#number = number;
    this.#options = options;
  }

  async run(events: readonly RecordedEvent[]): Promise<SessionReport> {
    this.#peer = new ReplayPeer(connectUnix(this.#options.socket), {
      channel: 'control',
      onMessage: (message, fds, isAwaited) => this.#received(message, fds, isAwaited),
    });
    try {
      const answers = new Map<number, Recorded<MessageEvent>>();
      for (const event of events) {
        if (event.event === 'message' && event.replyTo != null) answers.set(event.replyTo, event);
      }
      const start = performance.now();
      const first = events[0]?.time ?? 0;
      for (const event of events) {
        if (this.#options.timing === true) {
          const due = start + (event.time - first) / 1e6;
          await sleep(Math.max(0, due - performance.now()));
        }
        if (!(await this.#step(event, answers.get(event.seq) ?? null))) break;
      }
    } finally {
      await this.#close();
    }
    return {
      number: this.#number,
      sent: this.#sent,
      answered: this.#answered,
      skipped: this.#skipped,
      backendRequests: this.#backendRequests,
      notes: this.#notes,
      differences: this.#differences,
    };
  }

  async #close(): Promise<void> {
    await this.#peer.close();
    await Promise.all(this.#channels.map((channel) => channel.close()));
    this.#fds.close();
    this.#inflight?.fd.close();
    for (const kick of this.#kicks.values()) kick.close();
  }

  /** False: the session is over. */
  async #step(event: RecordedEvent, answer: Recorded<MessageEvent> | null): Promise<boolean> {
    switch (event.event) {
      case 'message':
        if (event.channel !== 'control' || event.from !== 'front-end') return true;
        return this.#message(event, answer);
      case 'raw':
        if (event.channel !== 'control' || event.from !== 'front-end') return true;
        return this.#raw(event);
      case 'kick': {
        // Starts the ring. There is nothing in it.
        const kick = this.#kicks.get(event.ring);
        if (kick !== undefined) signalEventfd(kick.number);
        return true;
      }
      case 'closed':
        await this.#ending(event);
        return false;
      default:
        return true;
    }
  }

  async #message(
    event: Recorded<MessageEvent>,
    answer: Recorded<MessageEvent> | null,
  ): Promise<boolean> {
    const isExact = this.#options.exact === true;
    const recorded = Buffer.from(event.hex, 'hex');
    const { entry, kind } = decodeMessage('control', recorded);
    let outgoing: Outgoing;
    if (isExact || entry?.needs == null || has(this.#acked, entry.needs)) {
      const bytes = isExact ? recorded : this.#adapted(event, recorded);
      outgoing = { id: event.id, bytes, fds: () => this.#substitutes(event) };
    } else {
      const instead = this.#instead(event, entry.needs);
      if (instead === null) return true;
      outgoing = instead;
    }
    this.#learn(event, outgoing.bytes); // REPLY_ACK counts for the message that acks it
    const isAck = entry !== null && entry.reply === 'ack';
    const asksAck = has(this.#acked, VHOST_USER_PROTOCOL_F_REPLY_ACK) || isExact;
    const isDue = !isAck || asksAck || !event.flags.needReply;
    const isAnswered = kind === 'request' && answer !== null && isDue;
    const waiting = isAnswered ? this.#peer.answerTo(outgoing.id) : null;
    const isSent = await this.#peer.send(outgoing.bytes, outgoing.fds());
    this.#sent++;
    this.#lastSeq = event.seq;
    if (!isSent) await this.#peer.close(); // what it said last is read by then
    const got = waiting === null ? null : await waiting;
    if (!isSent || (waiting !== null && got === null)) return this.#gone(event);
    if (got === null) return true;
    this.#answered++;
    if (this.#options.compare) {
      this.#differences.push(...compareAnswers(event, answer as Answer, got));
    }
    return true;
  }

  /** What a front-end says where a feature is missing; null: nothing. */
  #instead(event: Recorded<MessageEvent>, feature: number): Outgoing | null {
    const name = PROTOCOL_FEATURE_NAMES[feature] ?? `bit ${feature}`;
    const why = `this back-end does not offer ${name}`;
    const isSlot = event.id === REQUEST.ADD_MEM_REG.id || event.id === REQUEST.REM_MEM_REG.id;
    const table = isSlot ? this.#memory.after(event) : null;
    if (table === null) {
      this.#note(event, 'skipped', why);
      this.#skipped++;
      return null;
    }
    this.#note(event, 'adapted', `as SET_MEM_TABLE: ${why}`);
    const { bytes, fds } = table;
    const own = (): PlacedFd[] => fds.map((each) => ({ at: 0, fd: this.#fds.take(each) }));
    return { id: REQUEST.SET_MEM_TABLE.id, bytes, fds: own };
  }

  async #raw(event: Recorded<RawEvent>): Promise<boolean> {
    const fds = event.fds.map((each) => ({ at: 0, fd: this.#fds.take(each) }));
    await this.#peer.send(Buffer.from(event.hex, 'hex'), fds);
    this.#sent++;
    return true;
  }

  /** Features that this back-end offers; no ack where there will be none. */
  #adapted(event: Recorded<MessageEvent>, recorded: Buffer): Uint8Array {
    const limits = new Map([
      [REQUEST.SET_FEATURES.id, this.#offered],
      [REQUEST.SET_PROTOCOL_FEATURES.id, this.#offeredProtocol],
    ]);
    const limit = limits.get(event.id) ?? null;
    if (limit !== null && recorded.length === HEADER + 8) {
      const wanted = recorded.readBigUInt64LE(HEADER);
      const missing = wanted & ~limit;
      if (missing === 0n) return recorded;
      this.#note(event, 'adapted', `without bits 0x${missing.toString(16)}, which are not offered`);
      recorded.writeBigUInt64LE(wanted & limit, HEADER);
      return recorded;
    }
    if (event.id === REQUEST.SET_INFLIGHT_FD.id && this.#inflight !== null) {
      const { payload } = this.#inflight;
      this.#note(event, 'adapted', 'hands back the region that this back-end made');
      const size = payload.length;
      const header = VhostUserHeader.encode({ request: event.id, flags: event.flags.raw, size });
      return Buffer.concat([header, payload]);
    }
    return recorded;
  }

  #substitutes(event: Recorded<MessageEvent>): PlacedFd[] {
    const inflight = this.#inflight;
    if (event.id === REQUEST.SET_INFLIGHT_FD.id && inflight !== null) {
      return [{ at: 0, fd: inflight.fd }];
    }
    if (event.id === REQUEST.SET_BACKEND_REQ_FD.id && event.fds[0]?.kind === 'socket') {
      return [{ at: 0, fd: this.#openChannel(event.fds[0].identity) }];
    }
    if (event.id === REQUEST.SET_VRING_KICK.id && event.fds.length === 1) {
      const ring = Buffer.from(event.hex, 'hex')[HEADER] ?? 0;
      this.#kicks.get(ring)?.close();
      const kick = createEventfd(`replayed kick of vring ${ring}`);
      this.#kicks.set(ring, kick);
      return [{ at: 0, fd: kick }];
    }
    return event.fds.map((each) => ({ at: 0, fd: this.#fds.take(each) }));
  }

  /** A backend channel whose requests are all granted. Returns the back-end's end. */
  #openChannel(identity: string): Fd {
    const [ours, theirs] = socketPair();
    const channel: ReplayPeer = new ReplayPeer(ours, {
      channel: 'backend',
      onMessage: ({ id, flags, entry, kind }) => {
        if (kind !== 'request') return;
        this.#backendRequests++;
        if (!flags.needReply && (entry === null || entry.reply === 'ack')) return;
        const reply = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
        const header = VhostUserHeader.encode({ request: id, flags: reply, size: 8 });
        void channel.send(Buffer.concat([header, new Uint8Array(8)]), []);
      },
    });
    this.#channels.push(channel);
    return this.#fds.adopt(`channel ${this.#channels.length} ${identity}`, theirs);
  }

  /** What was acked decides what may be sent later. */
  #learn({ id }: Recorded<MessageEvent>, bytes: Uint8Array): void {
    if (id !== REQUEST.SET_PROTOCOL_FEATURES.id || bytes.length !== HEADER + 8) return;
    this.#acked = Buffer.from(bytes).readBigUInt64LE(HEADER);
  }

  #received(message: ReceivedMessage, fds: PlacedFd[], isAwaited: boolean): void {
    const { id, kind, bytes, name } = message;
    if (!isAwaited) {
      const shown = { recorded: 'no message', replayed: `a ${kind}`, allowed: null };
      this.#differences.push({ seq: this.#lastSeq, name, field: 'message', ...shown });
      return;
    }
    const payload = Buffer.from(bytes.subarray(HEADER));
    const isU64 = payload.length === 8;
    if (id === REQUEST.GET_FEATURES.id && isU64) this.#offered = payload.readBigUInt64LE();
    if (id === REQUEST.GET_PROTOCOL_FEATURES.id && isU64) {
      this.#offeredProtocol = payload.readBigUInt64LE();
    }
    if (id === REQUEST.GET_INFLIGHT_FD.id && fds.length === 1) {
      this.#inflight?.fd.close();
      this.#inflight = { fd: fds.shift()!.fd, payload };
    }
  }

  /** The recorded session ended here: so must this one, if the back-end ended it. */
  async #ending(event: Recorded<{ event: 'closed'; by: string }>): Promise<void> {
    await sleep(SETTLE_MS);
    const now = this.#peer.ended === null ? 'open' : this.#peer.ended;
    const before = event.by === 'back-end' ? 'it closed the connection' : 'open';
    if (now === before) return;
    const { seq } = event;
    const name = 'end of the session';
    const field = 'connection';
    this.#differences.push({ seq, name, field, recorded: before, replayed: now, allowed: null });
  }

  /** The recording goes on, the back-end does not. */
  #gone({ seq, name }: Recorded<MessageEvent>): boolean {
    const replayed = this.#peer.ended ?? 'no answer';
    const recorded = 'an answer, or more messages';
    this.#differences.push({ seq, name, field: 'answer', recorded, replayed, allowed: null });
    return false;
  }

  #note({ seq, name }: Recorded<MessageEvent>, kind: ReplayNote['kind'], text: string): void {
    this.#notes.push({ seq, name, kind, text });
  }
}

const has = (bits: bigint, bit: number): boolean => ((bits >> BigInt(bit)) & 1n) === 1n;
