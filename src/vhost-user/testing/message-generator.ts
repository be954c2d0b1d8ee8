/**
 * Makes valid messages from the table: a payload by its layout, field by field, until the table's
 * own parser takes it and its rules allow it; fds by what the table says that they are. A message
 * that is new in the table is made too: fields of known names get fitting values, others any.
 */
import { parsePayload, type PayloadRule } from '../../wire/vhost-user-parse.ts';
import type { AnyStruct } from '../../wire/struct.ts';
import * as wire from '../../wire/vhost-user.ts';
import { VIRTIO_F_RING_PACKED } from '../../wire/virtio.ts';
import { EVENT_MESSAGE, type MessageEntry, REQUEST } from '../message-table.ts';
import { REGION_BYTES, ringAddr, UVA_BASE } from './conversation.ts';
import { INTERESTING, type Random } from './random.ts';
import type { SessionModel } from './session-model.ts';

/** What a field may hold; `undefined` leaves it to chance. */
type Hint = (random: Random, index: number) => bigint | number | undefined;
type Hints = Readonly<Record<string, Hint>>;

export type MessagePlan = {
  readonly entry: MessageEntry;
  readonly payload: Uint8Array;
  /** What the table's parser makes of it. */
  readonly value: unknown;
  readonly fdCount: number;
};

export type GeneratorOptions = {
  readonly queueCount: number;
  /** What this front-end acks when it acks all that it wants. */
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** Size of its rings, mostly. */
  readonly ringSize: number;
  /** What was said so far. */
  readonly model: SessionModel;
};

const ATTEMPTS = 12;
const PAGE = 4096n;
const REGIONS = 8;
const { VHOST_F_LOG_ALL, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES: GPA_ADDRESSES } = wire;
const ACCESS_PLATFORM = 33;

/** Bits that a front-end acks: mostly what it wants, sometimes few of them. */
function someOf(random: Random, wanted: bigint): bigint {
  if (!random.once(8)) return wanted;
  return wanted & (random.u64() | (random.once(2) ? random.u64() : 0n));
}

export class MessageGenerator {
  readonly #random: Random;
  readonly #options: GeneratorOptions;
  /** By message, then by field: what is special about it. */
  /** Those of ADD_MEM_REG: the one that names a region which is not there. */
  readonly #adds: Hints = {};
  readonly #byMessage: ReadonlyMap<MessageEntry<never, never>, Hints>;

  constructor(random: Random, options: GeneratorOptions) {
    this.#random = random;
    this.#options = options;
    const vringFd: Hints = { value: (r) => BigInt(this.#ring(r)) | (r.once(6) ? 0x100n : 0n) };
    const logs = (): number => (options.model.ackedVirtio(VHOST_F_LOG_ALL) ? 2 : 1);
    const small =
      (below: number): Hint =>
      (r) =>
        r.next(below);
    this.#byMessage = new Map<MessageEntry<never, never>, Hints>([
      [REQUEST.SET_FEATURES, { value: (r) => someOf(r, options.features) }],
      [REQUEST.SET_PROTOCOL_FEATURES, { value: (r) => someOf(r, options.protocolFeatures) }],
      [
        REQUEST.SET_VRING_NUM,
        { num: (r) => (r.once(8) ? r.pick([1, 2, 64, 1024]) : options.ringSize) },
      ],
      [REQUEST.SET_VRING_BASE, { num: (r) => this.#base(r) }],
      [REQUEST.SET_VRING_ADDR, { flags: (r) => r.next(logs()) }],
      [REQUEST.SET_VRING_ENABLE, { num: small(2) }],
      [REQUEST.SET_VRING_ENDIAN, { num: small(2) }],
      [REQUEST.VRING_KICK, { num: () => 0 }],
      [REQUEST.SET_VRING_KICK, vringFd],
      [REQUEST.SET_VRING_CALL, vringFd],
      [REQUEST.SET_VRING_ERR, vringFd],
      [REQUEST.NET_SET_MTU, { value: (r) => BigInt(68 + r.next(9000)) }],
      [REQUEST.SET_STATUS, { value: (r) => BigInt(r.pick([0, 1, 3, 8, 11, 15, 128])) }],
      [REQUEST.CLOSE_CRYPTO_SESSION, { value: (r) => BigInt(r.next(4)) }],
      [REQUEST.ADD_MEM_REG, this.#adds],
      [REQUEST.IOTLB_MSG, { type: (r) => r.pick([2, 2, 3]) }],
      [EVENT_MESSAGE.IOTLB_MSG, { type: (r) => r.pick([1, 1, 4]) }],
      [EVENT_MESSAGE.VRING_CALL, { num: () => 0 }],
      [EVENT_MESSAGE.VRING_ERR, { num: () => 0 }],
    ] as [MessageEntry<never, never>, Hints][]);
  }

  /** Until told otherwise, messages are about this ring. */
  ring: number | null = null;

  /** A request; null when chance did not find one that is legal now. */
  request(entry: MessageEntry, allows: (value: unknown) => boolean): MessagePlan | null {
    for (let i = 0; i < ATTEMPTS; i++) {
      const payload = this.payload(entry.payload, this.#hintsOf(entry));
      const value = parsed(entry.payload, entry.name, payload);
      if (value === undefined || !allows(value)) continue;
      const [min, max] = entry.fds;
      const free = this.#random.once(4) ? max : min;
      return { entry, payload, value, fdCount: entry.payload.fdCount?.(value) ?? free };
    }
    return null;
  }

  /** A payload of that layout, for replies too. Whether it is sound is the parser's to say. */
  payload(rule: PayloadRule<unknown>, hints: Hints = {}): Uint8Array {
    const random = this.#random;
    const { head, each, tail } = rule.layout;
    const headBytes = head?.size ?? 0;
    const room = rule.maxBytes - headBytes;
    const entries = each === undefined ? 0 : this.#count(rule, each);
    let tailBytes = 0;
    if (tail !== undefined) {
      const least = Math.max(1, rule.minBytes - headBytes);
      tailBytes = Math.min(room, least + random.next(random.once(4) ? room : 16));
    }
    const size = headBytes + entries * (each?.size ?? 0) + tailBytes;
    // A payload of padding alone, which some peers leave out.
    const isPadding = head === undefined && each === undefined && tail === undefined;
    const payload = new Uint8Array(isPadding && random.once(2) ? rule.maxBytes : size);
    const all: Hints = {
      ...(each === undefined ? {} : { count: () => entries }),
      ...(tail === undefined ? {} : { sizeBytes: () => tailBytes, offset: (r) => r.next(8) }),
      ...hints,
    };
    if (tailBytes > 0) payload.set(random.bytes(Math.min(tailBytes, 16)), headBytes);
    if (head !== undefined) this.#fill(head, payload, 0, hints === this.#adds ? hints : all);
    for (let i = 0; i < entries; i++) {
      this.#fill(each!, payload, headBytes + i * each!.size, hints, i);
    }
    return payload;
  }

  #hintsOf(entry: MessageEntry): Hints {
    return this.#byMessage.get(entry as unknown as MessageEntry<never, never>) ?? {};
  }

  /** Where a ring begins: mostly at its start, as its format has it. */
  #base(random: Random): number {
    if (random.once(64)) return random.next(2 ** 32);
    const isPacked = this.#options.model.ackedVirtio(VIRTIO_F_RING_PACKED);
    if (isPacked) return random.pick([0x80008000, 0]);
    return random.once(4) ? random.next(0x10000) : 0;
  }

  /** A region that is shared, or for `isNew` one that is not. */
  #region(random: Random, isNew: boolean): number {
    const { regions } = this.#options.model;
    const all = Array.from({ length: REGIONS }, (_, n) => n);
    const fitting = all.filter((n) => regions.has(n) !== isNew);
    return random.pick(fitting.length === 0 || random.once(16) ? all : fitting);
  }

  #ring(random: Random): number {
    if (this.ring !== null) return this.ring;
    return random.once(3) ? random.next(this.#options.queueCount) : random.next(2);
  }

  #count({ minBytes, maxBytes, layout }: PayloadRule<unknown>, each: AnyStruct): number {
    const headBytes = layout.head?.size ?? 0;
    const [least, most] = [minBytes, maxBytes].map((n) => Math.floor((n - headBytes) / each.size));
    if (least === most) return least!;
    return Math.max(1, least!) + this.#random.next(this.#random.once(3) ? most! : 2);
  }

  #fill(shape: AnyStruct, into: Uint8Array, base: number, hints: Hints, nth = 0): void {
    const view = new DataView(into.buffer);
    const random = this.#random;
    // Fields of one struct belong together: of one ring, of one region.
    const index = this.#ring(random);
    const region = shape === wire.MemoryRegion ? nth : this.#region(random, hints === this.#adds);
    const defaults = this.#defaults(shape, index, region);
    for (const [name, field] of Object.entries(shape.fields)) {
      const kind = typeof field.get(view, base);
      const hint = hints[name]?.(random, index) ?? defaults[name]?.(random, index);
      const set = field.set as (view: DataView, base: number, value: unknown) => void;
      if (kind === 'bigint') set(view, base, BigInt(hint ?? random.pick(INTERESTING)));
      else if (kind === 'number') {
        const below = 2 ** (8 * field.bytes);
        set(view, base, Number(hint ?? random.next(random.once(4) ? below : 4)) % below);
      } else if (name !== 'padding') set(view, base, random.bytes(field.bytes));
    }
  }

  /** What fields of these names mean, wherever they are. */
  #defaults(shape: AnyStruct, index: number, region: number): Hints {
    const { model, ringSize, queueCount } = this.#options;
    const isUva = !model.ackedVirtio(ACCESS_PLATFORM) && !model.acked(GPA_ADDRESSES);
    const base = isUva ? UVA_BASE : 0n;
    const at = BigInt(region * REGION_BYTES);
    const address = (pick: (a: wire.VringAddr) => bigint): Hint => {
      return () => pick(ringAddr(index)) - UVA_BASE + base;
    };
    return {
      padding: () => 0n,
      index: () => index,
      indexAndFlags: (r) => BigInt(index) | (r.once(3) ? 0x100n : 0n),
      flags: (r) => r.next(2),
      descUva: address((a) => a.descUva),
      usedUva: address((a) => a.usedUva),
      availUva: address((a) => a.availUva),
      logGpa: (r) => BigInt(r.next(64)) * PAGE,
      guestPhysAddr: () => at,
      // What an IOTLB entry leads to is a guest address where rings are named by those.
      userAddr: () =>
        shape === wire.IotlbMessage && model.acked(GPA_ADDRESSES) ? at : UVA_BASE + at,
      fdOffset: () => 0n,
      shmOffset: (r) => BigInt(r.next(16)) * PAGE,
      shmId: (r) => r.next(3),
      iova: (r) => (r.once(4) ? BigInt(r.next(2 * REGION_BYTES)) & ~(PAGE - 1n) : at),
      sizeBytes: (r) => (r.once(4) ? BigInt(1 + r.next(16)) * PAGE : BigInt(REGION_BYTES)),
      permissions: (r) => (r.once(4) ? 1 + r.next(3) : 3),
      type: (r) => 1 + r.next(4),
      mapBytes: () => BigInt(REGION_BYTES),
      queueCount: (r) => (r.once(4) ? 1 + r.next(queueCount) : queueCount),
      queueSize: (r) => (r.once(8) ? r.pick([64, 1024]) : ringSize),
      direction: (r) => r.next(2),
      phase: () => 0,
    };
  }
}

function parsed<T>(rule: PayloadRule<T>, name: string, payload: Uint8Array): T | undefined {
  if (payload.length < rule.minBytes || payload.length > rule.maxBytes) return undefined;
  try {
    return parsePayload(rule, name, payload);
  } catch {
    return undefined;
  }
}
