/**
 * The two guests of bench/round-trip-run.ts, a process of their own on the client's core: one
 * sends a frame, the other sends it back. Both sleep until their call comes, so their own way
 * through epoll and the event loop, twice, is part of every round trip and the same for every
 * back-end. With background frames the guests poll instead: who sends steadily does not sleep.
 *
 * Argument: a ClientOrder as JSON. Requests and answers are messages of the parent's channel.
 */
import { connectNetGuest, NO_OFFLOAD, type NetGuest } from '../src/guest/index.ts';
import { parseMac } from '../src/wire/ethernet.ts';
import { sleep } from '../test/peers/scratch.ts';
import { CLIENT_MACS } from './scenario.ts';

export type ClientOrder = { readonly sockets: readonly string[]; readonly packed: boolean };

export type ClientRequest =
  | { readonly do: 'trips'; readonly count: number; readonly gapMs: number }
  /** Frames a second from the first guest to the second, beside the trips. */
  | { readonly do: 'load'; readonly framesPerSecond: number }
  | { readonly do: 'counters' };

export type ClientAnswer = {
  /** Of each trip, in the order they were made. */
  readonly tripsUs: readonly number[];
  /** Frames of the load since the start. */
  readonly sent: number;
  readonly received: number;
};

/** Without FCS, as testpmd counts it. */
const FRAME_BYTES = 64;
/** IEEE 802, local experimental: no switch makes anything of it. */
const ETHERTYPE = 0x88b5;
const KIND_AT = 14;
const NUMBER_AT = 16;
const TRIP = 1;
const LOAD = 2;
const TRIP_TIMEOUT_MS = 2000;
/** A switch may drop frames for a while after its rings were started: Open vSwitch does. */
const FIRST_TRIP_TIMEOUT_MS = 200;
const FIRST_TRIPS = 50;
/** Frames of the load in one turn of the event loop. */
const LOAD_BATCH = 64;

const order = JSON.parse(process.argv[2] ?? '{}') as ClientOrder;
const [sender, echo] = (await Promise.all(order.sockets.map(connect))) as [NetGuest, NetGuest];
const tripFrame = frameTo(1, TRIP);
const answerFrame = frameTo(0, TRIP);
const loadFrame = frameTo(1, LOAD);
let number = 0;
let sent = 0;
let received = 0;

function connect(socket: string, index: number): Promise<NetGuest> {
  return connectNetGuest({ socket, packed: order.packed, mac: CLIENT_MACS[index]! });
}

function frameTo(index: 0 | 1, kind: number): DataView<ArrayBuffer> {
  const frame = new Uint8Array(FRAME_BYTES);
  frame.set(parseMac(CLIENT_MACS[index])!, 0);
  frame.set(parseMac(CLIENT_MACS[1 - index]!)!, 6);
  const view = new DataView(frame.buffer);
  view.setUint16(12, ETHERTYPE);
  view.setUint8(KIND_AT, kind);
  return view;
}

function numberOf(frame: Uint8Array): number {
  return new DataView(frame.buffer, frame.byteOffset).getUint32(NUMBER_AT);
}

function isKind(frame: Uint8Array, kind: number): boolean {
  return ((frame[12]! << 8) | frame[13]!) === ETHERTYPE && frame[KIND_AT] === kind;
}

function send(guest: NetGuest, view: DataView<ArrayBuffer>, value: number): boolean {
  view.setUint32(NUMBER_AT, value);
  return guest.send(new Uint8Array(view.buffer), NO_OFFLOAD);
}

echo.onFrame = (frame) => {
  if (isKind(frame, LOAD)) received++;
  else if (isKind(frame, TRIP)) send(echo, answerFrame, numberOf(frame));
};

/** Microseconds from before the frame is sent until its answer is in our hands. */
function trip(timeoutMs = TRIP_TIMEOUT_MS): Promise<number> {
  return new Promise((resolve, reject) => {
    const wanted = ++number;
    const timer = setTimeout(() => {
      reject(new Error(`frame ${wanted} did not come back in ${timeoutMs} ms`));
    }, timeoutMs);
    sender.onFrame = (frame) => {
      if (!isKind(frame, TRIP) || numberOf(frame) !== wanted) return;
      const us = (performance.now() - sentAt) * 1000;
      clearTimeout(timer);
      resolve(us);
    };
    const sentAt = performance.now();
    if (!send(sender, tripFrame, wanted)) reject(new Error('the transmit ring is full'));
  });
}

/** Until a frame goes there and back, and both addresses are learned. */
async function firstTrip(): Promise<void> {
  for (let n = 1; ; n++) {
    sender.announce();
    echo.announce();
    try {
      return void (await trip(FIRST_TRIP_TIMEOUT_MS));
    } catch (error) {
      if (n === FIRST_TRIPS) throw error;
    }
  }
}

/** One at a time, `gapMs` and up to twice that apart, so that no timer keeps step with them. */
async function trips(count: number, gapMs: number): Promise<number[]> {
  const times: number[] = [];
  for (let n = 0; n < count; n++) {
    await sleep(gapMs * (1 + ((n * 7) % 16) / 16));
    times.push(await trip());
  }
  return times;
}

function startLoad(framesPerSecond: number): void {
  const startMs = performance.now();
  const turn = (): void => {
    const due = ((performance.now() - startMs) / 1000) * framesPerSecond;
    for (let n = 0; n < LOAD_BATCH && sent < due; n++) {
      if (!send(sender, loadFrame, sent)) break;
      sent++;
    }
    setImmediate(turn);
  };
  turn();
}

async function carryOut(request: ClientRequest): Promise<ClientAnswer> {
  if (request.do === 'load') startLoad(request.framesPerSecond);
  const tripsUs = request.do === 'trips' ? await trips(request.count, request.gapMs) : [];
  return { tripsUs, sent, received };
}

process.on('message', (request: ClientRequest) => {
  void carryOut(request).then((answer) => process.send!(answer));
});
process.once('disconnect', () => process.exit(0));
await firstTrip();
process.send!({ tripsUs: [], sent, received } satisfies ClientAnswer);
