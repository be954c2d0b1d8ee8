/**
 * A front-end that says what is legal, and now and then something else. See session.fuzz.ts.
 *
 * Most of a conversation is a real one: negotiation, memory, rings, then anything that the table
 * allows now. How much of it is spoiled is drawn for each conversation, from nothing to a third.
 */
import { writeSync } from 'node:fs';
import { type Fd, signalEventfd, socketPair } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { DEVICE_STATE_LOAD } from '../../wire/vhost-user-parse.ts';
import { closeFds } from '../connection.ts';
import { FRONT_END_MESSAGES, type MessageEntry, REQUEST } from '../message-table.ts';
import { offeredProtocolFeatures } from '../offered-features.ts';
import { postcopyAvailable } from '../postcopy-control.ts';
import { FAKE_FEATURES, type FakeTarget } from './fake-target.ts';
import type { FuzzFds } from './fuzz-fds.ts';
import { HostileChannel } from './hostile-channel.ts';
import { MessageGenerator, type MessagePlan } from './message-generator.ts';
import { mutate, type Outgoing } from './mutate.ts';
import { pesterFrontend } from './pester.ts';
import type { Random } from './random.ts';
import { encodeMessage, RawPeer, u64 } from './raw-peer.ts';
import { SessionModel } from './session-model.ts';

const LOG_ALL_AND_BIT_30 = (1n << 26n) | (1n << 30n);
const OFTEN_ABSENT = [
  wire.VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  wire.VHOST_USER_PROTOCOL_F_PAGEFAULT,
];
const NEED_REPLY = 9;

/** What a conversation begins with; gates and rules decide what of it is possible. */
const PREFIX: readonly MessageEntry<never, never>[] = [
  REQUEST.GET_FEATURES,
  REQUEST.GET_PROTOCOL_FEATURES,
  REQUEST.SET_PROTOCOL_FEATURES,
  REQUEST.SET_BACKEND_REQ_FD,
  REQUEST.SET_OWNER,
  REQUEST.SET_FEATURES,
  REQUEST.GET_INFLIGHT_FD,
  REQUEST.SET_INFLIGHT_FD,
  REQUEST.SET_MEM_TABLE,
  REQUEST.SET_LOG_BASE,
  REQUEST.IOTLB_MSG,
  REQUEST.IOTLB_MSG,
] as unknown as readonly MessageEntry<never, never>[];

const RING: readonly MessageEntry<never, never>[] = [
  REQUEST.SET_VRING_NUM,
  REQUEST.SET_VRING_BASE,
  REQUEST.SET_VRING_ADDR,
  REQUEST.SET_VRING_CALL,
  REQUEST.SET_VRING_KICK,
  REQUEST.SET_VRING_ENABLE,
] as unknown as readonly MessageEntry<never, never>[];

/** What comes about by chance too seldom. */
const SCENARIOS: readonly (readonly MessageEntry<never, never>[])[] = [
  [REQUEST.SET_DEVICE_STATE_FD, REQUEST.CHECK_DEVICE_STATE],
  [REQUEST.SET_INFLIGHT_FD, ...RING],
  [REQUEST.POSTCOPY_ADVISE, REQUEST.POSTCOPY_LISTEN, REQUEST.SET_MEM_TABLE],
  [REQUEST.IOTLB_MSG, REQUEST.IOTLB_MSG, REQUEST.IOTLB_MSG],
  [REQUEST.REM_MEM_REG, REQUEST.ADD_MEM_REG, REQUEST.REM_MEM_REG],
  [REQUEST.SET_FEATURES, REQUEST.SET_LOG_BASE, REQUEST.SET_VRING_ADDR, REQUEST.SET_FEATURES],
] as unknown as readonly (readonly MessageEntry<never, never>[])[];

/** The other side, as far as a fuzzer may see it; who that is may change. */
export type Scene = {
  readonly target: FakeTarget;
  /** How many messages were handled: while it grows, something moves. */
  readonly messages: number;
  /** Something that the front-end must not notice. */
  disturb?(random: Random): Promise<void>;
};

export class HostileFrontend {
  readonly #peer: RawPeer;
  readonly #random: Random;
  readonly #zoo: FuzzFds;
  readonly #scene: Scene;
  readonly #model = new SessionModel();
  readonly #generator: MessageGenerator;
  readonly #channels: HostileChannel[] = [];
  /** Ends of pipes and sockets that were handed over. */
  readonly #ends: Fd[] = [];
  readonly #reading: Promise<void>;
  #inflight: { readonly payload: Uint8Array; readonly fd: Fd } | null = null;
  #held: Outgoing | null = null;
  #isOver = false;

  /** Takes the socket over. */
  constructor(socket: Fd, random: Random, zoo: FuzzFds, scene: Scene) {
    this.#peer = new RawPeer(socket);
    this.#random = random;
    this.#zoo = zoo;
    this.#scene = scene;
    this.#generator = new MessageGenerator(random, {
      queueCount: scene.target.queueCount,
      ...wanted(random, scene.target),
      ringSize: random.pick([256, 256, 64, 1024]),
      model: this.#model,
    });
    this.#reading = this.#read();
  }

  /** The conversation; ends when it is over or the session has closed. */
  async run(): Promise<void> {
    const random = this.#random;
    const spoiled = random.pick([0, 0, 0, 2, 5, 10, 33]); // percent
    const all = [...FRONT_END_MESSAGES.values()];
    if (!random.once(16)) {
      for (const entry of PREFIX) {
        if (!random.once(24)) await this.#say(entry as unknown as MessageEntry, spoiled);
      }
      for (let ring = random.next(3); ring >= 0; ring--) {
        this.#generator.ring = ring;
        for (const entry of RING) await this.#say(entry as unknown as MessageEntry, spoiled);
      }
    }
    if (random.once(2)) await this.#act(random.pick(SCENARIOS), spoiled);
    this.#generator.ring = null;
    for (let left = random.next(40); left > 0 && !this.#isOver; left--) {
      const isOpen = random.next(100) >= spoiled;
      await this.#say(random.pick(isOpen ? this.#model.open() : all), spoiled);
      if (random.once(4)) this.#beside();
      if (random.once(64)) await this.#scene.disturb?.(random.fork());
    }
  }

  async close(): Promise<void> {
    if (!this.#random.once(4)) await this.#settle();
    this.#peer.close();
    await this.#reading;
    for (const each of this.#channels) await each.close();
    for (const fd of this.#ends) fd.close();
    this.#inflight?.fd.close();
  }

  /** Stops the rings first, which some of it demands, and sometimes a part of them only. */
  async #act(scenario: readonly MessageEntry<never, never>[], spoiled: number): Promise<void> {
    const isSuspended = this.#random.once(2);
    for (let ring = isSuspended ? this.#scene.target.queueCount - 1 : -1; ring >= 0; ring--) {
      this.#generator.ring = ring;
      if (!this.#random.once(32)) {
        await this.#say(REQUEST.GET_VRING_BASE as unknown as MessageEntry, spoiled);
      }
    }
    this.#generator.ring = 0;
    for (const entry of scenario) await this.#say(entry as unknown as MessageEntry, spoiled);
    const isPostcopy = this.#model.postcopy === 'listening';
    if (!isPostcopy) return;
    // The front-end has the addresses: eight zeros instead of regions.
    const bytes = encodeMessage(REQUEST.SET_MEM_TABLE.id, u64(0));
    await this.#order({ bytes, fds: [] }, this.#random.next(100) < spoiled);
  }

  async #say(entry: MessageEntry, spoiled: number): Promise<void> {
    const random = this.#random;
    const isWild = random.next(100) < spoiled;
    const model = this.#model;
    const isOpen = isWild || model.open().includes(entry);
    if (!isOpen || this.#isOver) return;
    const plan = this.#generator.request(entry, (value) => isWild || model.allows(entry, value));
    if (plan === null) return;
    if (!isWild) model.apply(entry, plan.value);
    let message = this.#message(plan);
    if (random.next(100) < spoiled) message = mutate(random, message, this.#zoo);
    await this.#order(message, random.next(100) < spoiled);
  }

  /** Sends, or drops, says twice, or keeps for later. */
  async #order(message: Outgoing, isSpoiled: boolean): Promise<void> {
    const turn = isSpoiled ? this.#random.next(4) : -1;
    if (turn === 0) return;
    if (turn === 1) {
      this.#held = message;
      return;
    }
    await this.#send(message);
    if (turn === 2) await this.#send(message);
    if (this.#held === null) return;
    const held = this.#held;
    this.#held = null;
    await this.#send(held);
  }

  /** In one piece or several, with pauses between; sometimes it is the last and not whole. */
  async #send({ bytes, fds }: Outgoing): Promise<void> {
    const random = this.#random;
    const isCut = random.once(400);
    const end = isCut ? random.next(bytes.length) : bytes.length;
    const split = random.once(8) ? random.next(end + 1) : 0;
    const pauses = random.once(3) ? random.next(4) : 0;
    if (split > 0) {
      await this.#peer.sendRaw(bytes.subarray(0, split), fds);
      await turns(pauses);
    }
    const isSent = await this.#peer.sendRaw(bytes.subarray(split, end), split > 0 ? [] : fds);
    this.#isOver ||= isCut || !isSent;
    if (random.once(3)) await this.#settle();
  }

  #message(plan: MessagePlan): Outgoing {
    const { entry, payload, fdCount } = plan;
    const fds = Array.from({ length: fdCount }, () => this.#fdFor(plan));
    const flags = this.#random.once(2) ? NEED_REPLY : 1;
    const inflight = this.#inflight;
    if (entry.id === REQUEST.SET_INFLIGHT_FD.id && inflight !== null) {
      return { bytes: encodeMessage(entry.id, inflight.payload, flags), fds: [inflight.fd.number] };
    }
    return { bytes: encodeMessage(entry.id, payload, flags), fds };
  }

  /** By what the table says that the fds are. */
  #fdFor({ entry, value }: MessagePlan): number {
    const random = this.#random;
    if (entry.fdsAre.includes('eventfd')) return this.#zoo.event(random);
    const isPipe = entry.fdsAre.includes('pipe');
    if (!isPipe && !entry.fdsAre.includes('socket')) return random.pick(this.#zoo.memory).number;
    const [kept, given] = socketPair();
    this.#ends.push(given);
    if (isPipe) {
      // Something to load and its end, or a reader that stays; each sometimes not.
      const isLoad = (value as { direction?: number }).direction === DEVICE_STATE_LOAD;
      if (isLoad && !random.once(8)) writeSync(kept.number, random.bytes(64));
      const stays = isLoad ? random.once(64) : !random.once(8);
      if (stays) this.#ends.push(kept);
      else kept.close();
    } else if (entry.id === REQUEST.SET_BACKEND_REQ_FD.id) {
      this.#channels.push(new HostileChannel(kept, random.fork(), this.#zoo));
    } else {
      this.#ends.push(kept);
    }
    return given.number;
  }

  /** What happens next to the socket: kicks, and a device that wants something. */
  #beside(): void {
    if (this.#random.once(2)) signalEventfd(this.#zoo.event(this.#random));
    else pesterFrontend(this.#random.fork(), this.#scene.target, this.#zoo);
  }

  async #read(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#peer.receive();
        if (message === null) return;
        const isRegion = message.request === REQUEST.GET_INFLIGHT_FD.id && message.fds.length === 1;
        if (isRegion && this.#inflight === null) {
          this.#inflight = { payload: message.payload.slice(), fd: message.fds.shift()! };
        }
        closeFds(message.fds);
      }
    } catch {
      // A reply to what a mutation made of a request, or a reset: the session says which.
    } finally {
      this.#isOver = true;
    }
  }

  /** Waits until the session has handled what was sent, or nothing moves any more. */
  async #settle(): Promise<void> {
    let quiet = 0;
    let last = -1;
    while (quiet < 4 && !this.#isOver) {
      await turns(1);
      const { messages } = this.#scene;
      quiet = messages === last ? quiet + 1 : 0;
      last = messages;
    }
  }
}

/** Features that change what everything else means, each wanted by some front-ends only. */
function wanted(
  random: Random,
  target: FakeTarget,
): { features: bigint; protocolFeatures: bigint } {
  const without = (bits: bigint, bit: number, times: number): bigint =>
    random.once(times) ? bits : bits & ~(1n << BigInt(bit));
  let features = FAKE_FEATURES | LOG_ALL_AND_BIT_30;
  for (const bit of [33, 34, 26]) features = without(features, bit, 3);
  let protocolFeatures = offeredProtocolFeatures(target, postcopyAvailable());
  for (const bit of OFTEN_ABSENT) protocolFeatures = without(protocolFeatures, bit, 3);
  return { features, protocolFeatures };
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}
