/** What a check works with: connections to the peer, guests, and patience. Owns all of it. */
import { connectUnix, type Fd } from '../sys/index.ts';
import { SysError } from '../base/errors.ts';
import * as wire from '../wire/vhost-user.ts';
import {
  hasFeature,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../wire/virtio.ts';
import { REQUEST } from '../vhost-user/index.ts';
import { CheckFailed, NotApplicable, type Offer } from './check.ts';
import { BackendPeer, type NegotiateOptions, u64 } from './peer.ts';
import type { Request } from './profiles.ts';
import { closeAll, RawSocket } from './raw-socket.ts';
import { Rig, type RigOptions, type TestRing, type Used } from './rig.ts';
import { encodeMessage } from './raw-socket.ts';
import { readU64, type Transcript } from './transcript.ts';

export type Patience = {
  /** For an answer to a message, and for a request to be completed. */
  readonly answerMs: number;
  /** How long nothing must happen for "nothing happens". */
  readonly quietMs: number;
  /** For a back-end that is still busy with the session before. */
  readonly connectMs: number;
};

export const DEFAULT_PATIENCE: Patience = { answerMs: 3000, quietMs: 120, connectMs: 5000 };

export type SetUp = NegotiateOptions &
  Partial<RigOptions> & {
    /** Default true. */
    readonly enable?: boolean;
    /** `poll`: the no-fd bit; `never`: no message at all. Default `fd`. */
    readonly kick?: 'fd' | 'poll' | 'never';
    readonly call?: 'fd' | 'none' | 'never';
    /** Regions that memory is cut into. */
    readonly regions?: number;
    /** VHOST_VRING_F_LOG. */
    readonly logUsed?: boolean;
  };

export type Session = { readonly peer: BackendPeer; readonly rig: Rig; readonly ring: TestRing };

export class CheckContext {
  readonly offer: Offer;
  readonly patience: Patience;
  readonly transcript: Transcript;
  readonly path: string;
  readonly #onRefused: () => void;
  #peer: BackendPeer | null = null;
  readonly #owned: { close(): void }[] = [];

  /** `onRefused`: a connection was refused and will be tried again, unless it throws. */
  constructor(
    path: string,
    offer: Offer,
    patience: Patience,
    transcript: Transcript,
    onRefused: () => void = () => {},
  ) {
    this.#onRefused = onRefused;
    this.path = path;
    this.offer = offer;
    this.patience = patience;
    this.transcript = transcript;
  }

  own<T extends { close(): void }>(thing: T): T {
    this.#owned.push(thing);
    return thing;
  }

  close(): void {
    for (const thing of this.#owned.splice(0).toReversed()) thing.close();
  }

  note(text: string): void {
    this.transcript.add('-', text);
  }

  saw(text: string): void {
    this.transcript.add('*', text);
  }

  fail(text: string): never {
    throw new CheckFailed(text);
  }

  notApplicable(text: string): never {
    throw new NotApplicable(text);
  }

  sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, milliseconds));
  }

  /** A new connection, its predecessors of this check closed. */
  async connect(): Promise<BackendPeer> {
    this.#peer?.close(); // many back-ends serve one session at a time
    const { path, transcript, patience } = this;
    this.#peer = this.own(await openPeer(path, transcript, patience, this.#onRefused));
    return this.#peer;
  }

  /** A new connection with the negotiation done. */
  async negotiated(options: NegotiateOptions = {}): Promise<BackendPeer> {
    const peer = await this.connect();
    await peer.negotiate(options);
    return peer;
  }

  guest(options: Partial<RigOptions> = {}): Rig {
    return this.own(new Rig({ rings: this.offer.profile.rings, ...options }));
  }

  /** Connection, negotiation, memory, and all rings of the device set up. */
  async start(options: SetUp = {}): Promise<Session> {
    const virtio = [...this.offer.profile.virtio, ...(options.virtio ?? [])];
    if (options.packed) virtio.push(VIRTIO_F_RING_PACKED);
    if (options.eventIdx) virtio.push(VIRTIO_RING_F_EVENT_IDX);
    if (options.indirect) virtio.push(VIRTIO_RING_F_INDIRECT_DESC);
    const peer = await this.negotiated({ ...options, virtio });
    const rig = this.guest(options);
    await this.shareMemory(peer, rig, options.regions ?? 1);
    for (const ring of rig.rings) await this.setUpRing(peer, ring, options);
    await peer.barrier('after the rings were set up');
    return { peer, rig, ring: rig.ring(this.offer.profile.workRing) };
  }

  async shareMemory(peer: BackendPeer, rig: Rig, regions = 1): Promise<void> {
    const table = rig.regions(regions);
    const payload = memoryTable(table);
    await peer.tell(REQUEST.SET_MEM_TABLE, payload, { fds: table.map(() => rig.memory.fd) });
  }

  async setUpRing(peer: BackendPeer, ring: TestRing, options: SetUp = {}): Promise<void> {
    const { index } = ring;
    await peer.tell(REQUEST.SET_VRING_NUM, state(index, ring.queue.size));
    await peer.tell(REQUEST.SET_VRING_BASE, state(index, options.base ?? ring.base));
    await peer.tell(REQUEST.SET_VRING_ADDR, wire.VringAddr.encode(ring.addr(options.logUsed)));
    await this.notifiers(peer, ring, options);
    if (peer30(peer)) {
      if (options.enable !== false) await peer.tell(REQUEST.SET_VRING_ENABLE, state(index, 1));
    }
  }

  async notifiers(peer: BackendPeer, ring: TestRing, options: SetUp = {}): Promise<void> {
    const { call = 'fd', kick = 'fd' } = options;
    const { index } = ring;
    if (call === 'fd') await peer.tell(REQUEST.SET_VRING_CALL, u64(index), { fds: [ring.call] });
    if (call === 'none') await peer.tell(REQUEST.SET_VRING_CALL, u64(index | 0x100));
    if (kick === 'fd') await peer.tell(REQUEST.SET_VRING_KICK, u64(index), { fds: [ring.kick] });
    if (kick === 'poll') await peer.tell(REQUEST.SET_VRING_KICK, u64(index | 0x100));
  }

  /** One known request of the device, published but not kicked. */
  post(session: Session, ring = session.ring, indirect = false): Request {
    const make = this.offer.profile.request;
    if (make === null) this.notApplicable('no request of this device is known to the runner');
    const request = make(session.rig);
    session.rig.submit(ring, request.readable, request.writable, indirect);
    this.saw(`ring ${ring.index}: one request made available`);
    return request;
  }

  kick(ring: TestRing): void {
    this.saw(`ring ${ring.index}: kicked`);
    ring.signal();
  }

  /** Posts, kicks and expects `count` requests to be completed and right. */
  async work(session: Session, count = 1, indirect = false): Promise<Used[]> {
    const requests = Array.from({ length: count }, () =>
      this.post(session, session.ring, indirect),
    );
    this.kick(session.ring);
    const used = await this.completed(session, count);
    for (const [i, request] of requests.entries()) {
      const problem = count === 1 ? request.verify((used[i] as Used).len) : null;
      if (problem !== null) this.fail(`the request was completed, but ${problem}`);
    }
    return used;
  }

  /** Expects exactly `count` requests to come back. */
  async completed(session: Session, count: number, ring = session.ring): Promise<Used[]> {
    const used = await session.rig.collect(ring, count, this.patience.answerMs);
    this.saw(`ring ${ring.index}: ${used.length} of ${count} completed`);
    if (used.length === count) return used;
    const { answerMs } = this.patience;
    return this.fail(`${used.length} of ${count} requests were completed within ${answerMs} ms`);
  }

  /** Expects that nothing comes back for a while. */
  async idle(session: Session, why: string, ring = session.ring): Promise<void> {
    const used = await session.rig.collect(ring, 1, this.patience.quietMs);
    this.saw(`ring ${ring.index}: ${used.length} completed in ${this.patience.quietMs} ms`);
    if (used.length > 0) this.fail(`a request was completed although ${why}`);
  }

  /** Stops every ring that is not in `bases` yet, and sets all of them up again where they were. */
  async restart(session: Session, bases = new Map<TestRing, number>()): Promise<void> {
    const { peer, rig } = session;
    for (const ring of rig.rings) {
      if (!bases.has(ring)) bases.set(ring, await this.stop(session, ring));
    }
    for (const [ring, base] of bases) await this.setUpRing(peer, ring, { base });
    await peer.barrier('the rings were set up again');
  }

  /** GET_VRING_BASE: the ring is stopped when this returns. */
  async stop(session: Session, ring = session.ring): Promise<number> {
    const answer = await session.peer.ask(REQUEST.GET_VRING_BASE, state(ring.index, 0));
    if (answer.length !== wire.VringState.size) {
      this.fail(`GET_VRING_BASE: a reply of ${answer.length} bytes, expected 8`);
    }
    const { index, num } = wire.VringState.decode(answer);
    if (index !== ring.index) this.fail(`GET_VRING_BASE ${ring.index}: the reply is for ${index}`);
    return num;
  }
}

/** Whether SET_VRING_ENABLE means anything: bit 30 was acked. */
function peer30(peer: BackendPeer): boolean {
  return hasFeature(peer.acked, wire.VHOST_USER_F_PROTOCOL_FEATURES);
}

export function state(index: number, num: number): Uint8Array {
  return wire.VringState.encode({ index, num });
}

export function memoryTable(
  regions: readonly Omit<wire.MemoryRegion, never>[],
  count = regions.length,
): Uint8Array {
  return Buffer.concat([
    wire.MemoryTableHeader.encode({ count, padding: 0 }),
    ...regions.map((region) => wire.MemoryRegion.encode(region)),
  ]);
}

export function singleRegion(region: wire.MemoryRegion): Uint8Array {
  return wire.SingleMemoryRegion.encode({ padding: 0n, ...region });
}

/** Codes of connect(2) that waiting may cure. */
const COMES_LATER = new Set(['ENOENT', 'ECONNREFUSED', 'EAGAIN']);

/**
 * Connects and asks GET_FEATURES, again and again: a back-end that serves one session at a time
 * may be busy with the end of the one before, and some close a second connection at once.
 */
export async function openPeer(
  path: string,
  transcript: Transcript,
  { connectMs, answerMs }: Pick<Patience, 'connectMs' | 'answerMs'>,
  onRefused: () => void = () => {},
): Promise<BackendPeer> {
  const deadline = performance.now() + connectMs;
  for (;;) {
    const last = performance.now() > deadline;
    let socket: Fd | null = null;
    try {
      socket = connectUnix(path);
    } catch (error) {
      const name = error instanceof SysError ? error.errnoName : '';
      if (!COMES_LATER.has(name)) throw error;
      if (last) throw new PeerGone(`nobody accepts connections at ${path} (${name})`);
      onRefused();
    }
    if (socket !== null) {
      const raw = new RawSocket(socket);
      const features = await askFeatures(raw, answerMs);
      if (typeof features === 'bigint') {
        transcript.add('-', `connected; GET_FEATURES answered 0x${features.toString(16)}`);
        return new BackendPeer(raw, transcript, answerMs, features);
      }
      raw.close();
      if (last || features === 'timeout') {
        const did = features === 'timeout' ? 'does not answer' : 'closes instead of answering';
        throw new PeerGone(`the back-end accepts a connection and ${did} GET_FEATURES`);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The back-end is not there or does not serve: not the verdict of one rule. */
export class PeerGone extends CheckFailed {}

async function askFeatures(
  raw: RawSocket,
  answerMs: number,
): Promise<bigint | 'timeout' | 'closed'> {
  const empty = new Uint8Array(0);
  const sent = await raw.send(encodeMessage(REQUEST.GET_FEATURES.id, 1, empty));
  if (!sent) return 'closed';
  const got = await raw.receive(answerMs);
  if (got === 'timeout') return 'timeout';
  if (typeof got === 'string') return 'closed';
  closeAll(got.fds);
  return got.payload.length === 8 ? readU64(got.payload) : 'closed';
}
