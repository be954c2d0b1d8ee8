/**
 * AF_VSOCK of the guest, stream sockets only: which packet belongs to whom, connections out and in,
 * and the packets that had no room in the ring. Virtio 1.2, 5.10.6.
 */
import { VringError } from '../base/errors.ts';
import {
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_TYPE_STREAM,
  type VsockHeader,
} from '../wire/virtio-vsock.ts';
import type { VsockGuest } from './vsock-driver.ts';
import { type PacketFields, type StreamCalls, VsockStream } from './vsock-stream.ts';

export type VsockStackOptions = {
  readonly link: Pick<VsockGuest, 'cid' | 'send' | 'onPacket' | 'onRoom' | 'closed'>;
};

export type VsockListener = (stream: VsockStream) => void;

/** Connections at a time, both ways; a peer that wants more is refused. */
export const MAX_VSOCK_STREAMS = 256;
/** Packets without payload that wait for room; over it the newest is dropped and counted. */
const MAX_WAITING = 1024;
const FIRST_PORT = 1024;
const LAST_PORT = 0xffff_fffe;
const NOTHING = new Uint8Array(0);

type Peer = { readonly cid: number; readonly port: number };

export class VsockStack {
  readonly counters = { accepted: 0, refused: 0, connected: 0, strays: 0, dropped: 0 };
  readonly #link: VsockStackOptions['link'];
  readonly #streams = new Map<string, VsockStream>();
  readonly #listeners = new Map<number, VsockListener>();
  readonly #waiting: VsockHeader[] = [];
  readonly #calls: StreamCalls;
  #nextPort = FIRST_PORT;

  constructor({ link }: VsockStackOptions) {
    this.#link = link;
    this.#calls = {
      send: (stream, fields, payload) => {
        if (this.#waiting.length > 0) return false; // in order
        return link.send(this.#header(stream.localPort, peerOf(stream), fields, payload), payload);
      },
      say: (stream, fields) => this.#say(stream.localPort, peerOf(stream), fields),
      forget: (stream) => {
        const key = keyOf(stream.localPort, peerOf(stream));
        if (this.#streams.get(key) === stream) this.#streams.delete(key);
      },
    };
    link.onPacket = (header, payload) => this.#input(header, payload);
    link.onRoom = () => this.#room();
    void link.closed.then((reason) =>
      this.#dropAll('ERR_VRING_GUEST_BACKEND_GONE', reason?.message ?? 'the guest is closed'),
    );
  }

  get cid(): number {
    return this.#link.cid;
  }

  get streams(): number {
    return this.#streams.size;
  }

  /**
   * Resolves with an open stream.
   * @throws VringError ERR_VRING_VSOCK_REFUSED, ERR_VRING_VSOCK_TIMEOUT, ERR_VRING_GUEST_BUSY.
   */
  async connect(cid: number, port: number): Promise<VsockStream> {
    if (this.#streams.size >= MAX_VSOCK_STREAMS) throw this.#full();
    const peer = { cid, port };
    const stream = this.#add(this.#freePort(peer), peer, true);
    stream.on('error', () => undefined); // `connected` says it first
    await stream.connected;
    this.counters.connected++;
    return stream;
  }

  /** Every connection to `port` goes to `onStream`. @throws VringError ERR_VRING_GUEST_BUSY. */
  listen(port: number, onStream: VsockListener): void {
    if (this.#listeners.has(port)) {
      throw new VringError('ERR_VRING_GUEST_BUSY', `vsock port ${port} has a listener already`);
    }
    this.#listeners.set(port, onStream);
  }

  /** Open streams stay. */
  unlisten(port: number): void {
    this.#listeners.delete(port);
  }

  /** The guest has another device now, which knows of no connection: all end. 5.10.6.7. */
  reset(): void {
    this.#waiting.length = 0;
    this.#dropAll('ERR_VRING_VSOCK_RESET', 'the socket device was reset');
  }

  #input(header: VsockHeader, payload: Uint8Array): void {
    const peer = { cid: Number(header.srcCid), port: header.srcPort };
    const ours = header.dstCid === BigInt(this.#link.cid);
    if (!ours || header.type !== VIRTIO_VSOCK_TYPE_STREAM) {
      // 5.10.6.4.1: a type that is not known is answered with RST.
      this.counters.strays++;
      if (ours) this.#refuse(header, peer);
      return;
    }
    const stream = this.#streams.get(keyOf(header.dstPort, peer));
    if (stream !== undefined) return stream.input(header, payload);
    const listener = this.#listeners.get(header.dstPort);
    if (header.op !== VIRTIO_VSOCK_OP_REQUEST) {
      this.counters.strays++;
      return this.#refuse(header, peer);
    }
    if (listener === undefined || this.#streams.size >= MAX_VSOCK_STREAMS) {
      this.counters.refused++;
      return this.#refuse(header, peer);
    }
    this.counters.accepted++;
    const accepted = this.#add(header.dstPort, peer, false);
    accepted.begin(header);
    listener(accepted);
  }

  #refuse({ dstPort, op, type }: VsockHeader, peer: Peer): void {
    if (op === VIRTIO_VSOCK_OP_RST) return; // no answers to answers
    this.#say(dstPort, peer, { op: VIRTIO_VSOCK_OP_RST, flags: 0, bufAlloc: 0, fwdCnt: 0 }, type);
  }

  #add(port: number, peer: Peer, connecting: boolean): VsockStream {
    const stream = new VsockStream(port, peer, this.#calls, connecting);
    this.#streams.set(keyOf(port, peer), stream);
    return stream;
  }

  #say(port: number, peer: Peer, fields: PacketFields, type = VIRTIO_VSOCK_TYPE_STREAM): void {
    const header = { ...this.#header(port, peer, fields, NOTHING), type };
    if (this.#waiting.length === 0 && this.#link.send(header, NOTHING)) return;
    if (this.#waiting.length < MAX_WAITING) this.#waiting.push(header);
    else this.counters.dropped++;
  }

  #room(): void {
    while (this.#waiting.length > 0) {
      if (!this.#link.send(this.#waiting[0], NOTHING)) return;
      this.#waiting.shift();
    }
    for (const stream of this.#streams.values()) stream.pump();
  }

  #header(port: number, peer: Peer, fields: PacketFields, payload: Uint8Array): VsockHeader {
    return {
      srcCid: BigInt(this.#link.cid),
      dstCid: BigInt(peer.cid),
      srcPort: port,
      dstPort: peer.port,
      len: payload.length,
      type: VIRTIO_VSOCK_TYPE_STREAM,
      ...fields,
    };
  }

  /** Streams are few: a free port is among the next ones. */
  #freePort(peer: Peer): number {
    for (;;) {
      const port = this.#nextPort;
      this.#nextPort = port === LAST_PORT ? FIRST_PORT : port + 1;
      if (!this.#listeners.has(port) && !this.#streams.has(keyOf(port, peer))) return port;
    }
  }

  #dropAll(code: string, what: string): void {
    for (const stream of this.#streams.values()) stream.lose(code, what);
  }

  #full(): VringError {
    const text = `${MAX_VSOCK_STREAMS} vsock connections are open already`;
    return new VringError('ERR_VRING_GUEST_BUSY', text);
  }
}

const peerOf = ({ peerCid, peerPort }: VsockStream): Peer => ({ cid: peerCid, port: peerPort });
const keyOf = (port: number, peer: Peer): string => `${port} ${peer.cid}:${peer.port}`;
