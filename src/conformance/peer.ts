/**
 * The back-end under test, seen through one connection. Methods that a conversation is made of
 * throw CheckFailed when the back-end does what no correct one does (closes, is silent, answers
 * something else); `attempt` is for messages that it may refuse.
 */
import { type Fd, socketPair } from '../sys/index.ts';
import {
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
  U64Payload,
} from '../wire/vhost-user.ts';
import { featureSet, hasFeature, VIRTIO_F_VERSION_1 } from '../wire/virtio.ts';
import { REQUEST } from '../vhost-user/index.ts';
import { CheckFailed, NotApplicable } from './check.ts';
import {
  closeAll,
  encodeMessage,
  type RawMessage,
  RawSocket,
  type Reception,
} from './raw-socket.ts';
import { describeMessage, readU64, type Transcript } from './transcript.ts';

/** What of a table entry sending needs. */
export type Sendable = { readonly id: number; readonly name: string; readonly reply: string };

export type SendOptions = {
  readonly fds?: readonly Fd[];
  /** Header flags; default: version 1 alone. */
  readonly flags?: number;
  /** Size that the header tells; default: the truth. */
  readonly size?: number;
};

export type NegotiateOptions = {
  /** Protocol features to ack where offered, besides REPLY_ACK. */
  readonly protocol?: readonly number[];
  /** Do not ack REPLY_ACK. */
  readonly noAck?: boolean;
  /** Virtio features to ack where offered, besides VERSION_1. */
  readonly virtio?: readonly number[];
  /** Leave bit 30 out of SET_FEATURES. */
  readonly without30?: boolean;
};

/**
 * What became of a message that may be refused. `silent`: it lives, but did not answer although
 * it had to; `unknown`: it lives, and nothing tells whether it took the message.
 */
export type Outcome = 'accepted' | 'refused' | 'closed' | 'silent' | 'unknown';

export function u64(value: bigint | number): Uint8Array {
  return U64Payload.encode({ value: BigInt(value) });
}

const NOTHING = new Uint8Array(0);
const ASK = VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK;

export class BackendPeer {
  readonly socket: RawSocket;
  readonly transcript: Transcript;
  readonly timeoutMs: number;
  /** As GET_FEATURES said; asked when the connection was made. */
  readonly offered: bigint;
  offeredProtocol = 0n;
  acked = 0n;
  ackedProtocol = 0n;
  /** Our end of the backend channel. */
  channel: RawSocket | null = null;

  constructor(socket: RawSocket, transcript: Transcript, timeoutMs: number, offered: bigint) {
    this.socket = socket;
    this.transcript = transcript;
    this.timeoutMs = timeoutMs;
    this.offered = offered;
  }

  get acks(): boolean {
    return hasFeature(this.ackedProtocol, VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  /** False: the back-end has closed. */
  async send(
    to: Sendable,
    payload: Uint8Array = NOTHING,
    options: SendOptions = {},
  ): Promise<boolean> {
    const { fds = [], flags = VHOST_USER_VERSION, size = payload.length } = options;
    const shown = { request: to.id, flags, size, payload, fdCount: fds.length };
    this.transcript.add('>', describeMessage(shown));
    const bytes = encodeMessage(to.id, flags, payload, size);
    return this.sendBytes(
      bytes,
      fds.map((fd) => fd.number),
    );
  }

  async sendBytes(bytes: Uint8Array, fds: readonly number[] = []): Promise<boolean> {
    const sent = await this.socket.send(bytes, fds);
    if (!sent) this.transcript.add('-', 'the back-end has closed the connection');
    return sent;
  }

  async receive(timeoutMs = this.timeoutMs): Promise<Reception> {
    const got = await this.socket.receive(timeoutMs);
    if (typeof got === 'string') {
      const words = { closed: 'closed the connection', partial: 'closed inside a message' };
      if (got === 'timeout') this.transcript.add('-', `nothing within ${timeoutMs} ms`);
      else this.transcript.add('<', `the back-end ${words[got]}`);
      return got;
    }
    const { request, flags, payload, fds } = got;
    const shown = { request, flags, size: payload.length, payload, fdCount: fds.length };
    this.transcript.add('<', describeMessage(shown));
    return got;
  }

  /** The reply to `to`, whose header must be right. The caller closes its fds. */
  async reply(to: Sendable): Promise<RawMessage> {
    const got = await this.receive();
    const short = to.name.replace('VHOST_USER_', '');
    if (got === 'timeout') {
      throw new CheckFailed(`${short}: no reply within ${this.timeoutMs} ms`);
    }
    if (typeof got === 'string') throw new CheckFailed(`${short}: closed instead of a reply`);
    const flagsDue = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
    if (got.request !== to.id) {
      closeAll(got.fds);
      throw new CheckFailed(`${short}: the reply has request id ${got.request}, not ${to.id}`);
    }
    // need_reply in a reply means nothing; every back-end that copies the flags has it there.
    if ((got.flags & ~VHOST_USER_NEED_REPLY_MASK) !== flagsDue) {
      closeAll(got.fds);
      const text = `0x${got.flags.toString(16)}`;
      throw new CheckFailed(`${short}: the reply's flags are ${text}, expected 0x5`);
    }
    return got;
  }

  /** A request with a reply of its own; returns its payload, fds are closed. */
  async ask(to: Sendable, payload?: Uint8Array, options?: SendOptions): Promise<Uint8Array> {
    await this.send(to, payload, options);
    const reply = await this.reply(to);
    closeAll(reply.fds);
    return reply.payload;
  }

  async askU64(to: Sendable, payload?: Uint8Array, options?: SendOptions): Promise<bigint> {
    const answer = await this.ask(to, payload, options);
    const short = to.name.replace('VHOST_USER_', '');
    if (answer.length !== 8) {
      throw new CheckFailed(`${short}: a reply of ${answer.length} bytes, expected one u64`);
    }
    return readU64(answer);
  }

  /** A request that a correct back-end takes; acked where that was negotiated. */
  async tell(to: Sendable, payload?: Uint8Array, options: SendOptions = {}): Promise<void> {
    const short = to.name.replace('VHOST_USER_', '');
    if (!this.acks) {
      const sent = await this.send(to, payload, options);
      if (!sent) throw new CheckFailed(`${short}: the back-end had closed the connection`);
      return;
    }
    const value = await this.askU64(to, payload, { ...options, flags: ASK });
    if (value !== 0n) throw new CheckFailed(`${short}: refused with ${value}, it is correct`);
  }

  /** Everything before is handled when this returns: requests are handled in order. */
  async barrier(what: string): Promise<void> {
    await this.send(REQUEST.GET_FEATURES);
    const got = await this.receive();
    if (got === 'timeout') throw new CheckFailed(`${what}: the back-end does not answer any more`);
    if (typeof got === 'string') throw new CheckFailed(`${what}: the back-end closed`);
    closeAll(got.fds);
    if (got.request !== REQUEST.GET_FEATURES.id) {
      throw new CheckFailed(`${what}: an answer to request ${got.request} that nobody asked for`);
    }
  }

  /** A message that it may refuse. */
  async attempt(to: Sendable, payload?: Uint8Array, options: SendOptions = {}): Promise<Outcome> {
    const answers = to.reply !== 'ack' || this.acks;
    const flags = to.reply === 'ack' && this.acks ? ASK : VHOST_USER_VERSION;
    if (!(await this.send(to, payload, { ...options, flags: options.flags ?? flags }))) {
      return 'closed';
    }
    if (answers) {
      const got = await this.receive(Math.min(this.timeoutMs, 1000));
      if (got === 'closed' || got === 'partial') return 'closed';
      if (got !== 'timeout') {
        closeAll(got.fds);
        if (to.reply === 'payload') return got.payload.length === 0 ? 'refused' : 'accepted';
        return got.payload.length === 8 && readU64(got.payload) === 0n ? 'accepted' : 'refused';
      }
    }
    if (!(await this.send(REQUEST.GET_FEATURES))) return 'closed';
    const got = await this.receive();
    if (got === 'closed' || got === 'partial') return 'closed';
    if (got === 'timeout') return 'silent';
    closeAll(got.fds);
    return answers ? 'silent' : 'unknown';
  }

  /** A message that it must not take: refused or closed. Without acks nobody can tell. */
  async mustRefuse(
    what: string,
    to: Sendable,
    payload?: Uint8Array,
    options?: SendOptions,
  ): Promise<void> {
    let outcome = await this.attempt(to, payload, options);
    // Some answer "success" and then end the connection: refused, in the worst of manners.
    if (outcome === 'accepted' && (await this.#ended())) outcome = 'closed';
    if (outcome === 'refused' || outcome === 'closed') return;
    if (outcome === 'unknown') {
      throw new NotApplicable('REPLY_ACK is not offered: nothing tells whether it was refused');
    }
    const did = outcome === 'silent' ? 'not answered at all' : 'accepted';
    throw new CheckFailed(`${what}: ${did}, expected a non-zero ack or an end of the connection`);
  }

  async #ended(): Promise<boolean> {
    if (!(await this.send(REQUEST.GET_FEATURES))) return true;
    const got = await this.receive();
    if (typeof got === 'string') return got !== 'timeout';
    closeAll(got.fds);
    return false;
  }

  /** GET_PROTOCOL_FEATURES where bit 30 is offered. */
  async askProtocolFeatures(): Promise<bigint> {
    if (!hasFeature(this.offered, VHOST_USER_F_PROTOCOL_FEATURES)) return 0n;
    this.offeredProtocol = await this.askU64(REQUEST.GET_PROTOCOL_FEATURES);
    return this.offeredProtocol;
  }

  /** The order of QEMU: protocol features, owner, features. */
  async negotiate(options: NegotiateOptions = {}): Promise<void> {
    const { protocol = [], virtio = [] } = options;
    await this.askProtocolFeatures();
    const wanted = options.noAck ? protocol : [VHOST_USER_PROTOCOL_F_REPLY_ACK, ...protocol];
    if (hasFeature(this.offered, VHOST_USER_F_PROTOCOL_FEATURES)) {
      const bits = featureSet(...wanted) & this.offeredProtocol;
      await this.send(REQUEST.SET_PROTOCOL_FEATURES, u64(bits));
      this.ackedProtocol = bits;
    }
    await this.tell(REQUEST.SET_OWNER);
    const all = featureSet(VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES, ...virtio);
    let bits = all & this.offered;
    if (options.without30) bits &= ~featureSet(VHOST_USER_F_PROTOCOL_FEATURES);
    await this.tell(REQUEST.SET_FEATURES, u64(bits));
    this.acked = bits;
    if (hasFeature(this.ackedProtocol, VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
      await this.openChannel();
    }
  }

  async openChannel(): Promise<void> {
    const [ours, theirs] = socketPair();
    this.channel?.close();
    this.channel = new RawSocket(ours);
    try {
      await this.tell(REQUEST.SET_BACKEND_REQ_FD, NOTHING, { fds: [theirs] });
    } finally {
      theirs.close();
    }
  }

  /** The next request of the back-end; acked with zero where it asks for that. */
  async channelRequest(timeoutMs: number): Promise<RawMessage | null> {
    const { channel } = this;
    if (channel === null) return null;
    const got = await channel.receive(timeoutMs);
    if (typeof got === 'string') return null;
    const { request, flags, payload, fds } = got;
    const shown = { request, flags, size: payload.length, payload, fdCount: fds.length };
    this.transcript.add('<', `(channel) ${describeMessage(shown, 'back-end')}`);
    if (flags & VHOST_USER_NEED_REPLY_MASK) {
      const answer = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
      this.transcript.add('>', '(channel) ack 0');
      await channel.send(encodeMessage(request, answer, u64(0)));
    }
    return got;
  }

  close(): void {
    this.channel?.close();
    this.socket.close();
  }
}
