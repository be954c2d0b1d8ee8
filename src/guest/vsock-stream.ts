/**
 * One stream connection of the guest's socket device, as a Duplex. Virtio 1.2, 5.10.6.
 *
 * Theory of operation. States: *connecting* (REQUEST sent), *open*, *closing* (both sides have said
 * that they send no more; a SHUTDOWN of both directions is out and the peer's RST, which ends a
 * connection cleanly, is awaited), *gone*. Credit, 5.10.6.3: either side says how large its receive
 * buffer is (`buf_alloc`) and how much of what it got its application took (`fwd_cnt`, modulo
 * 2^32); the other keeps what is under way within. A peer that sends more than we gave is reset.
 */
import { Duplex } from 'node:stream';
import { VringError } from '../base/errors.ts';
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
  type VsockHeader,
} from '../wire/virtio-vsock.ts';
import { VSOCK_PACKET_BYTES } from './vsock-driver.ts';

/** What a stream says of itself; the stack adds the addresses. */
export type PacketFields = Pick<VsockHeader, 'op' | 'flags' | 'bufAlloc' | 'fwdCnt'>;

/** The stack, as its streams know it. */
export type StreamCalls = {
  /** False: no room now; `pump` is called when there is. RW packets only. */
  readonly send: (stream: VsockStream, fields: PacketFields, payload: Uint8Array) => boolean;
  /** As `send`, kept until there is room. */
  readonly say: (stream: VsockStream, fields: PacketFields) => void;
  /** No packet will come or go any more. */
  readonly forget: (stream: VsockStream) => void;
};

export const VSOCK_BUFFER_BYTES = 262_144; // as Linux: VSOCK_DEFAULT_BUFFER_SIZE
/** Tell the peer as soon as so much was taken since it heard of it last. */
const CREDIT_STEP_BYTES = VSOCK_BUFFER_BYTES / 4;
const CONNECT_MS = 2000; // as Linux: VSOCK_DEFAULT_CONNECT_TIMEOUT
const CLOSE_MS = 2000; //   Linux waits 8 s
const BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

type State = 'connecting' | 'open' | 'closing' | 'gone';

export class VsockStream extends Duplex {
  readonly localPort: number;
  readonly peerCid: number;
  readonly peerPort: number;
  readonly #calls: StreamCalls;
  #state: State;
  #timer: NodeJS.Timeout | null = null;
  readonly #connected = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<void>();
  /** Received, not taken yet by the reader. */
  readonly #inbox: Buffer[] = [];
  #inboxBytes = 0;
  #wanted = false;
  /** Taken by the reader; and what of it the peer was told. Modulo 2^32. */
  #fwdCnt = 0;
  #toldFwdCnt = 0;
  /** VIRTIO_VSOCK_SHUTDOWN_* of the peer. */
  #peerShutdown = 0;
  #readEnded = false;
  #finished = false;
  #peerBufAlloc = 0;
  #peerFwdCnt = 0;
  #txCnt = 0;
  #outgoing: { bytes: Uint8Array; done: (error?: Error | null) => void } | null = null;
  #asked = false;

  /** `connecting`: we sent the REQUEST; else the peer did, and gets its RESPONSE. */
  constructor(
    localPort: number,
    peer: { readonly cid: number; readonly port: number },
    calls: StreamCalls,
    connecting: boolean,
  ) {
    super({ allowHalfOpen: true });
    this.localPort = localPort;
    this.peerCid = peer.cid;
    this.peerPort = peer.port;
    this.#calls = calls;
    this.#state = connecting ? 'connecting' : 'open';
    this.#connected.promise.catch(() => undefined); // also where nobody waits for it
    this.#say(connecting ? VIRTIO_VSOCK_OP_REQUEST : VIRTIO_VSOCK_OP_RESPONSE);
    if (connecting) this.#expect(CONNECT_MS, 'ERR_VRING_VSOCK_TIMEOUT', 'did not answer');
    else this.#connected.resolve();
  }

  /** Resolves when the peer accepted. @throws VringError ERR_VRING_VSOCK_REFUSED, _TIMEOUT. */
  get connected(): Promise<void> {
    return this.#connected.promise;
  }

  /** Resolves when no packet of it will come or go any more. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** What stands in every packet of ours. */
  get credit(): Pick<PacketFields, 'bufAlloc' | 'fwdCnt'> {
    return { bufAlloc: VSOCK_BUFFER_BYTES, fwdCnt: this.#fwdCnt };
  }

  /** The REQUEST of a peer that connects: its buffer, before the first word is sent there. */
  begin(request: VsockHeader): void {
    this.#peerBufAlloc = request.bufAlloc;
    this.#peerFwdCnt = request.fwdCnt;
  }

  /** A packet of the peer's. */
  input(header: VsockHeader, payload: Uint8Array): void {
    this.begin(header);
    this.#asked = false;
    switch (header.op) {
      case VIRTIO_VSOCK_OP_RESPONSE:
        return this.#accepted();
      case VIRTIO_VSOCK_OP_RW:
        return this.#data(payload);
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        return this.#shutdown(header.flags & BOTH);
      case VIRTIO_VSOCK_OP_RST:
        return this.#reset();
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        return this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        return this.pump();
      default:
        return this.abort('ERR_VRING_VSOCK_PROTOCOL', `sent operation ${header.op}`);
    }
  }

  /** Sends what credit and ring have room for. */
  pump(): void {
    const { bytes, done } = this.#outgoing ?? {};
    if (bytes === undefined || this.#state !== 'open') return;
    const underWay = (this.#txCnt - this.#peerFwdCnt) >>> 0;
    const room = Math.min(this.#peerBufAlloc - underWay, VSOCK_PACKET_BYTES, bytes.length);
    if (room <= 0) return this.#askForCredit();
    const fields = { op: VIRTIO_VSOCK_OP_RW, flags: 0, ...this.credit };
    if (!this.#calls.send(this, fields, bytes.subarray(0, room))) return;
    this.#toldFwdCnt = this.#fwdCnt;
    this.#txCnt = (this.#txCnt + room) >>> 0;
    const rest = bytes.subarray(room);
    if (rest.length > 0) {
      this.#outgoing = { bytes: rest, done: done! };
      return this.pump();
    }
    this.#outgoing = null;
    done!();
  }

  /** Ends it with an error, and tells the peer. */
  abort(code: string, what: string): void {
    if (this.#state === 'gone') return;
    this.#say(VIRTIO_VSOCK_OP_RST);
    this.#gone(new VringError(code, `${this.#peer()} ${what}`, { recovery: 'reconnect' }));
  }

  /** Ends it without a word to anybody: the device was reset, or closed. */
  lose(code: string, what: string): void {
    this.#gone(new VringError(code, `${this.#peer()}: ${what}`, { recovery: 'reconnect' }));
  }

  override _write(
    chunk: Buffer,
    _encoding: BufferEncoding,
    done: (error?: Error | null) => void,
  ): void {
    if (this.#state === 'gone' || (this.#peerShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) {
      const text = `${this.#peer()} receives no more`;
      return done(new VringError('ERR_VRING_VSOCK_RESET', text, { recovery: 'reconnect' }));
    }
    this.#outgoing = { bytes: chunk, done };
    this.pump();
  }

  override _final(done: () => void): void {
    this.#finished = true;
    if (this.#state === 'open') {
      this.#say(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_SEND);
      this.#maybeClose();
    }
    done();
  }

  override _read(): void {
    this.#wanted = true;
    this.#deliver();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    // A clean end goes on without us until the peer's RST, or until it took too long.
    if (error !== null || this.#state !== 'closing') {
      if (this.#state !== 'gone') this.#say(VIRTIO_VSOCK_OP_RST);
      this.#gone(null);
    }
    done(error);
  }

  #accepted(): void {
    if (this.#state !== 'connecting') {
      return this.abort('ERR_VRING_VSOCK_PROTOCOL', 'accepted a connection twice');
    }
    this.#stopTimer();
    this.#state = 'open';
    this.#connected.resolve();
    this.pump();
    if (this.#finished) this._final(() => undefined);
  }

  #data(payload: Uint8Array): void {
    if (this.#state === 'connecting' || this.#inboxBytes + payload.length > VSOCK_BUFFER_BYTES) {
      return this.abort('ERR_VRING_VSOCK_PROTOCOL', 'sent more than it had credit for');
    }
    if (this.#state !== 'open' || payload.length === 0) return;
    this.#inbox.push(Buffer.from(payload));
    this.#inboxBytes += payload.length;
    this.#deliver();
    this.pump();
  }

  #deliver(): void {
    while (this.#wanted && this.#inbox.length > 0) {
      const chunk = this.#inbox.shift()!;
      this.#inboxBytes -= chunk.length;
      this.#fwdCnt = (this.#fwdCnt + chunk.length) >>> 0;
      this.#wanted = this.push(chunk);
    }
    const untold = (this.#fwdCnt - this.#toldFwdCnt) >>> 0;
    if (untold >= CREDIT_STEP_BYTES && this.#state === 'open') {
      this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    }
    const ended = (this.#peerShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0;
    if (!ended || this.#inbox.length > 0 || this.#readEnded) return;
    this.#readEnded = true;
    this.push(null);
    this.#maybeClose();
  }

  #shutdown(flags: number): void {
    if (this.#state === 'connecting') {
      return this.abort('ERR_VRING_VSOCK_PROTOCOL', 'shut down what was not open');
    }
    this.#peerShutdown |= flags;
    if ((this.#peerShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) this.#failWrite();
    this.#deliver();
    this.#maybeClose();
  }

  /** After both directions ended; the RST of whoever hears of that last is a clean end. */
  #maybeClose(): void {
    if (this.#state === 'gone' || !this.#readEnded) return;
    if (this.#peerShutdown === BOTH) {
      this.#say(VIRTIO_VSOCK_OP_RST);
      return this.#gone(null);
    }
    if (!this.#finished || this.#state === 'closing') return;
    this.#state = 'closing';
    this.#say(VIRTIO_VSOCK_OP_SHUTDOWN, BOTH);
    this.#timer = setTimeout(() => {
      this.#say(VIRTIO_VSOCK_OP_RST);
      this.#gone(null);
    }, CLOSE_MS);
  }

  #reset(): void {
    if (this.#state === 'connecting') {
      const text = `${this.#peer()} refused: nobody listens there`;
      const error = new VringError('ERR_VRING_VSOCK_REFUSED', text, { recovery: 'retry' });
      return this.#gone(error);
    }
    const clean = this.#state === 'closing' || (this.#readEnded && this.#finished);
    const error = new VringError('ERR_VRING_VSOCK_RESET', `${this.#peer()} reset the connection`, {
      recovery: 'reconnect',
    });
    this.#gone(clean || this.#peerShutdown === BOTH ? null : error);
  }

  #gone(error: Error | null): void {
    if (this.#state === 'gone') return;
    this.#state = 'gone';
    this.#stopTimer();
    this.#calls.forget(this);
    this.#ended.resolve();
    this.#connected.reject(error ?? new VringError('ERR_VRING_CLOSED', `${this.#peer()} closed`));
    if (error !== null) return void this.destroy(error);
    this.#failWrite();
    // What was received may still be read; it ended with that.
    this.#peerShutdown = BOTH;
    if (!this.destroyed) this.#deliver();
  }

  #failWrite(): void {
    const { done } = this.#outgoing ?? {};
    this.#outgoing = null;
    const text = `${this.#peer()} receives no more`;
    done?.(new VringError('ERR_VRING_VSOCK_RESET', text, { recovery: 'reconnect' }));
  }

  #askForCredit(): void {
    if (this.#asked) return;
    this.#asked = true;
    this.#say(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
  }

  #say(op: number, flags = 0): void {
    this.#toldFwdCnt = this.#fwdCnt;
    this.#calls.say(this, { op, flags, ...this.credit });
  }

  #expect(milliseconds: number, code: string, what: string): void {
    this.#timer = setTimeout(() => this.abort(code, what), milliseconds);
  }

  #stopTimer(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #peer(): string {
    return `vsock ${this.peerCid}:${this.peerPort}`;
  }
}
