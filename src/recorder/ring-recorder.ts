/**
 * Ring events of one session: stands between kick, call and err eventfds, and reads the indexes
 * of split rings from the memory that the front-end shares. It never writes there.
 *
 * Nothing here can fail a session: what is malformed, or is no eventfd, passes as it came.
 */
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import { messageOf, ProtocolError } from '../base/errors.ts';
import { type RegionDescription, SharedRegion } from '../memory/index.ts';
import { arena, createEventfd } from '../sys/index.ts';
import { type MessageEntry, REQUEST } from '../vhost-user/index.ts';
import { parsePayload, type VringFd } from '../wire/vhost-user-parse.ts';
import type { VringAddr } from '../wire/vhost-user.ts';
import { VIRTIO_F_RING_PACKED } from '../wire/virtio.ts';
import { isEventfd } from './fd-description.ts';
import type { Piece } from './message-reader.ts';
import type { RingEvent } from './recorded-event.ts';
import { SignalRelay } from './signal-relay.ts';

type Signal = RingEvent['event'];

/** Replaced call and err eventfds of one ring that are still relayed. */
const KEPT_RELAYS = 2;

export type RingRecorderOptions = {
  readonly put: (event: RingEvent) => void;
  readonly note: (text: string) => void;
};

export class RingRecorder {
  readonly #options: RingRecorderOptions;
  /** Newest first. */
  readonly #relays = new Map<string, SignalRelay[]>();
  readonly #addresses = new Map<number, VringAddr>();
  #regions: SharedRegion[] = [];
  #isPacked = false;
  /** Memory that is still to come must not be touched: reading would bring zeros into being. */
  #isPostcopy = false;

  constructor(options: RingRecorderOptions) {
    this.#options = options;
  }

  /** A request of the front-end, before it is handed on. */
  request(id: number, piece: Piece): void {
    try {
      this.#handle(id, piece);
    } catch (error) {
      if (!(error instanceof ProtocolError)) this.#options.note(messageOf(error));
    }
  }

  /** Idempotent. */
  close(): void {
    for (const relay of [...this.#relays.values()].flat()) relay.close();
    this.#relays.clear();
    for (const region of this.#regions.splice(0)) region.close();
  }

  #handle(id: number, piece: Piece): void {
    const read = <T>(entry: MessageEntry<T, unknown>): T =>
      parsePayload(entry.payload, entry.name, piece.bytes.subarray(12));
    switch (id) {
      case REQUEST.SET_FEATURES.id:
        this.#isPacked = ((read(REQUEST.SET_FEATURES) >> BigInt(VIRTIO_F_RING_PACKED)) & 1n) === 1n;
        return;
      case REQUEST.POSTCOPY_ADVISE.id:
        this.#isPostcopy = true;
        return;
      case REQUEST.SET_MEM_TABLE.id: {
        const table = read(REQUEST.SET_MEM_TABLE);
        for (const region of this.#regions.splice(0)) region.close();
        for (const [i, region] of table.entries()) this.#map(region, piece, i);
        return;
      }
      case REQUEST.ADD_MEM_REG.id:
        this.#map(read(REQUEST.ADD_MEM_REG), piece, 0);
        return;
      case REQUEST.REM_MEM_REG.id:
        this.#unmap(read(REQUEST.REM_MEM_REG));
        return;
      case REQUEST.SET_VRING_ADDR.id: {
        const addresses = read(REQUEST.SET_VRING_ADDR);
        if (addresses.index < 256) this.#addresses.set(addresses.index, addresses);
        return;
      }
      case REQUEST.SET_VRING_KICK.id:
        this.#interpose('kick', read(REQUEST.SET_VRING_KICK), piece);
        return;
      case REQUEST.SET_VRING_CALL.id:
        this.#interpose('call', read(REQUEST.SET_VRING_CALL), piece);
        return;
      case REQUEST.SET_VRING_ERR.id:
        this.#interpose('err', read(REQUEST.SET_VRING_ERR), piece);
    }
  }

  #map(region: RegionDescription, piece: Piece, at: number): void {
    const placed = piece.fds[at];
    if (placed === undefined || this.#isPostcopy || this.#regions.length >= MAX_MEM_SLOTS) return;
    this.#regions.push(SharedRegion.map(placed.fd.number, region));
  }

  #unmap(gone: RegionDescription): void {
    const at = this.#regions.findIndex((region) => {
      return (
        region.userAddr === Number(gone.userAddr) && region.sizeBytes === Number(gone.sizeBytes)
      );
    });
    if (at >= 0) this.#regions.splice(at, 1)[0]!.close();
  }

  /** Hands an eventfd of ours on. A ring without one polls: there is nothing to stand between. */
  #interpose(signal: Signal, { index, hasFd }: VringFd, piece: Piece): void {
    const key = `${signal} ${index}`;
    const earlier = this.#relays.get(key) ?? [];
    const kept: SignalRelay[] = [];
    const placed = piece.fds[0];
    if (placed !== undefined && hasFd && piece.fds.length === 1 && isEventfd(placed.fd.number)) {
      const own = createEventfd(`relayed ${key}`);
      const theirs = placed.fd;
      placed.fd = own.dup();
      const [source, target] = signal === 'kick' ? [theirs, own] : [own, theirs];
      kept.push(new SignalRelay(source, target, (count) => this.#put(signal, index, count)));
    }
    if (signal === 'kick') {
      const isUnread = earlier.map((relay) => relay.closeUnread()).includes(true);
      if (isUnread) kept[0]?.signal();
    } else {
      // Until the back-end has handled this message, it signals the eventfd that it had before.
      kept.push(...earlier.splice(0, KEPT_RELAYS));
      for (const relay of earlier) relay.close();
    }
    this.#relays.set(key, kept);
  }

  #put(event: Signal, ring: number, count: number): void {
    const addresses = this.#addresses.get(ring);
    const available = this.#read16(addresses?.availUva);
    const used = this.#read16(addresses?.usedUva);
    this.#options.put({ event, ring, count, available, used });
  }

  /** `idx` of a split ring's area: the second 16 bits. */
  #read16(areaUva: bigint | undefined): number | null {
    if (areaUva === undefined || this.#isPacked || this.#isPostcopy) return null;
    const uva = Number(areaUva) + 2;
    for (const { userAddr, sizeBytes, offset } of this.#regions) {
      if (uva < userAddr || uva + 2 > userAddr + sizeBytes) continue;
      return arena().view.getUint16(offset + (uva - userAddr), true);
    }
    return null;
  }
}
