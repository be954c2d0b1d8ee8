/**
 * The two guests of bench/round-trip-stand.ts, a process of their own on the client's core. One
 * sends frames and *probes*, a probe at a time; the other takes the frames and sends the probes
 * back. How long a probe is away is what is measured.
 *
 * Without frames both guests sleep until a call comes, whichever it is for: two wake-ups of this
 * process are part of each round trip. With frames they poll, as busy drivers do, and ask for a
 * call after each look that found something, so that a call is made for whatever is published.
 *
 * Argument: a ClientOrder as JSON. Requests and answers are messages of the parent's channel.
 */
import { assert } from '../src/base/assert.ts';
import { BATCH } from '../src/base/limits.ts';
import { connectNetGuest, type NetGuest } from '../src/guest/index.ts';
import { reapRx, reclaimTx, refillRx, releaseRx, sendSlots } from '../src/guest/net-driver.hot.ts';
import { drainEventfd, Epoll } from '../src/sys/index.ts';
import { disableCalls, enableCalls } from '../src/virtqueue/driver/index.ts';
import { parseMac } from '../src/wire/ethernet.ts';
import { NET_HEADER_BYTES } from '../src/wire/virtio-net.ts';
import {
  runShare,
  sleepsBetween,
  snapshot,
  threadsText,
  totalWaitingShare,
  waitingShare,
} from './disturbance.ts';
import { CLIENT_MACS } from './scenario.ts';

export type ClientOrder = {
  readonly sockets: readonly string[];
  readonly packed: boolean;
  /** Processes of the back-end. */
  readonly pids: readonly number[];
};

export type ClientRequest =
  | { readonly do: 'rest'; readonly ms: number }
  | {
      readonly do: 'trips';
      readonly ms: number;
      /** Frames a second beside the probes; null: as many as go. */
      readonly framesPerSecond: number | null;
      /** Frames under way at most. */
      readonly window: number;
      /** From one probe's return to the next one: up to twice as long, changing. */
      readonly gapMs: number;
    };

export type ClientAnswer = {
  /** Of each probe, in the order they were made. */
  readonly tripsUs: readonly number[];
  /** Frames that came out of the switch in a second, probes there and back included. */
  readonly framesPerSecond: number;
  /** Of one core, of all threads of the back-end. */
  readonly cpuShare: number;
  /** Each thread of it that ran. */
  readonly threads: string;
  /** Of the time, of both sides: of the busiest that waited, or of all threads where all sleep. */
  readonly waitingShare: number;
  /** In a second: times that a thread of the back-end slept; calls it made; kicks it was given. */
  readonly sleeps: number;
  readonly calls: number;
  readonly kicks: number;
};

/** Without FCS, as testpmd counts it. */
const FRAME_BYTES = 64;
/** IEEE 802, local experimental: no switch makes anything of it. */
const ETHERTYPE = 0x88b5;
const ETHERTYPE_AT = 12;
const KIND_AT = 14;
const NUMBER_AT = 16;
const PROBE = 1;
const LOAD = 2;
const TRIP_TIMEOUT_MS = 2000;
/** A switch may drop frames for a while after its rings were started: Open vSwitch does. */
const FIRST_TRIP_TIMEOUT_MS = 200;
const FIRST_TRIPS = 50;
const LOST_MS = 200;
/** Of the time: what runs less beside a load only helps, and waits for who polls. */
const BUSY_SHARE = 0.1;

/** One guest's rings. Nobody else looks at them. */
class Station {
  /** Calls that came so far. */
  calls = 0;
  /** Of the last `reap`: the number of a probe, or 0. */
  probe = 0;
  readonly #guest: NetGuest;

  constructor(guest: NetGuest, index: 0 | 1) {
    this.#guest = guest;
    const [tx] = guest.tx;
    const header = new Uint8Array(NET_HEADER_BYTES);
    const frame = new Uint8Array(FRAME_BYTES);
    frame.set(parseMac(CLIENT_MACS[1 - index]!)!, 0);
    frame.set(parseMac(CLIENT_MACS[index])!, 6);
    new DataView(frame.buffer).setUint16(ETHERTYPE_AT, ETHERTYPE);
    for (const at of tx!.slotOffset) {
      new Uint8Array(tx!.arena.buffer, at).set(header);
      new Uint8Array(tx!.arena.buffer, at + NET_HEADER_BYTES).set(frame);
    }
    disableCalls(tx!.ring);
  }

  get callFd(): number {
    return this.#guest.rx[0]!.call.number;
  }

  get kicks(): number {
    return this.#guest.rx[0]!.kicks + this.#guest.tx[0]!.kicks;
  }

  /** Returns how many went out. */
  send(kind: number, number: number, count: number): number {
    const [tx] = this.#guest.tx;
    const { slotOffset, freeSlots, arena } = tx!;
    assert(reclaimTx(tx!) >= 0);
    const wanted = Math.min(count, tx!.freeCount, BATCH);
    for (let i = 1; i <= wanted; i++) {
      const at = slotOffset[freeSlots[tx!.freeCount - i]!]! + NET_HEADER_BYTES;
      arena.setUint8(at + KIND_AT, kind);
      arena.setUint32(at + NUMBER_AT, number);
    }
    const sent = sendSlots(tx!, wanted, NET_HEADER_BYTES + FRAME_BYTES, false);
    this.#guest.kickIfWanted(tx!);
    return sent;
  }

  /** Takes what came; returns how many frames of the load were there. */
  reap(): number {
    const [rx] = this.#guest.rx;
    const [frames] = this.#guest.rxFrames;
    const count = reapRx(rx!, frames!, this.#guest.mergeable);
    assert(count >= 0);
    this.probe = 0;
    if (count === 0) return 0;
    let loads = 0;
    for (let i = 0; i < count; i++) {
      const at = frames!.offset[i]!;
      if (rx!.arena.getUint16(at + ETHERTYPE_AT) !== ETHERTYPE) continue;
      if (rx!.arena.getUint8(at + KIND_AT) === LOAD) loads++;
      else this.probe = rx!.arena.getUint32(at + NUMBER_AT);
    }
    releaseRx(rx!, frames!);
    refillRx(rx!);
    this.#guest.kickIfWanted(rx!);
    this.ask();
    return loads;
  }

  /** Asks for a call; true: there is something already. */
  ask(): boolean {
    this.calls += drainEventfd(this.callFd);
    return enableCalls(this.#guest.rx[0]!.ring);
  }
}

const order = JSON.parse(process.argv[2] ?? '{}') as ClientOrder;
const guests = (await Promise.all(
  order.sockets.map((socket, index) =>
    connectNetGuest({ socket, packed: order.packed, mac: CLIENT_MACS[index]!, notify: 'manual' }),
  ),
)) as [NetGuest, NetGuest];
const sender = new Station(guests[0], 0);
const echo = new Station(guests[1], 1);
const epoll = new Epoll();
const tokens = new Int32Array(4);
let number = 0;
/** Frames of the load. */
let sent = 0;
let received = 0;

/** The probe that is away: its number, and when it was sent. */
let away = 0;
let awaySinceMs = 0;

function sendProbe(nowMs: number): void {
  if (sender.send(PROBE, number + 1, 1) === 0) return;
  away = ++number;
  awaySinceMs = nowMs;
}

/** What came is taken and answered. Returns the microseconds of a probe that is back, or 0. */
function reapBoth(): number {
  received += echo.reap();
  if (echo.probe !== 0) echo.send(PROBE, echo.probe, 1);
  sender.reap();
  if (away === 0 || sender.probe !== away) return 0;
  away = 0;
  return (performance.now() - awaySinceMs) * 1000;
}

/** Until a call comes, so long at most. */
function sleepUntilCalled(ms: number): void {
  if (sender.ask() || echo.ask()) return;
  epoll.wait(tokens, Math.max(1, Math.ceil(ms)));
}

/** Until a frame goes there and back, and both addresses are learned. */
function firstTrip(): void {
  for (let n = 0; n < FIRST_TRIPS; n++) {
    sendProbe(performance.now());
    const endMs = performance.now() + FIRST_TRIP_TIMEOUT_MS;
    while (performance.now() < endMs) {
      if (reapBoth() > 0) return;
      sleepUntilCalled(FIRST_TRIP_TIMEOUT_MS);
    }
  }
  throw new Error(`none of ${FIRST_TRIPS} frames came back`);
}

type Trips = Extract<ClientRequest, { do: 'trips' }>;

/** Probes, and what is asked for beside them; returns the microseconds of each probe. */
function makeTrips({ ms, framesPerSecond, window, gapMs }: Trips): number[] {
  const tripsUs: number[] = [];
  const startMs = performance.now();
  const sleeps = framesPerSecond === 0;
  let nextMs = startMs + gapMs;
  [sent, received] = [0, 0];
  for (let nowMs = startMs; nowMs < startMs + ms; nowMs = performance.now()) {
    const due =
      framesPerSecond === null ? window : ((nowMs - startMs) / 1000) * framesPerSecond - sent;
    const count = Math.min(Math.floor(due), window - (sent - received));
    if (count > 0) sent += sender.send(LOAD, 0, count);
    if (away === 0 && nowMs >= nextMs) sendProbe(nowMs);
    const us = reapBoth();
    if (us > 0) {
      tripsUs.push(us);
      nextMs = performance.now() + gapMs * (1 + ((tripsUs.length * 7) % 16) / 16);
    } else if (away !== 0 && nowMs > awaySinceMs + TRIP_TIMEOUT_MS) {
      throw new Error(`probe ${away} did not come back in ${TRIP_TIMEOUT_MS} ms`);
    }
    if (sleeps) sleepUntilCalled(away === 0 ? nextMs - performance.now() : TRIP_TIMEOUT_MS);
  }
  return tripsUs;
}

/** What is under way arrives, or is lost. */
function settle(): void {
  const endMs = performance.now() + LOST_MS;
  while ((received < sent || away !== 0) && performance.now() < endMs) reapBoth();
}

function isBusy(request: ClientRequest): boolean {
  return request.do === 'trips' && request.framesPerSecond !== 0;
}

function carryOut(request: ClientRequest): ClientAnswer {
  const pids = [process.pid, ...order.pids];
  const kicks = sender.kicks + echo.kicks;
  const calls = sender.calls + echo.calls;
  const all = snapshot(pids);
  const before = snapshot(order.pids);
  let tripsUs: number[] = [];
  if (request.do === 'trips') tripsUs = makeTrips(request);
  else epoll.wait(tokens, request.ms);
  const after = snapshot(order.pids);
  const seconds = (after.atMs - before.atMs) / 1000;
  const frames = request.do === 'trips' ? received + 2 * tripsUs.length : 0;
  const answer = {
    tripsUs,
    framesPerSecond: frames / seconds,
    cpuShare: runShare(before, after),
    threads: threadsText(before, after),
    waitingShare: isBusy(request)
      ? waitingShare(all, snapshot(pids), BUSY_SHARE)
      : totalWaitingShare(all, snapshot(pids)),
    sleeps: sleepsBetween(before, after) / seconds,
    calls: (sender.calls + echo.calls - calls) / seconds,
    kicks: (sender.kicks + echo.kicks - kicks) / seconds,
  };
  settle();
  return answer;
}

process.on('message', (request: ClientRequest) => process.send!(carryOut(request)));
process.once('disconnect', () => process.exit(0));
epoll.add(sender.callFd, 0);
epoll.add(echo.callFd, 1);
firstTrip();
process.send!({ ready: true });
