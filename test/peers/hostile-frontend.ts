/**
 * A front-end that first behaves and then does not, as a process of its own:
 *
 *   node test/peers/hostile-frontend.ts SOCKET
 *
 * It sends broadcast frames and takes what comes until a line on its standard input names a
 * misdeed. It says `ready`, `done` and `closed: REASON` on standard output. It drives its rings by
 * hand (split, no offered feature but VERSION_1), because a proper driver would not do such things.
 */
import { createInterface } from 'node:readline';
import { GuestMemory } from '../../src/memory/index.ts';
import { arena, createEventfd, signalEventfd, truncate, type Fd } from '../../src/sys/index.ts';
import { VhostUserFrontend } from '../../src/vhost-user/index.ts';

const RING_SIZE = 256;
const BUFFER_BYTES = 2048;
const MEMORY_BYTES = 2 << 20;
const NET_HEADER_BYTES = 12;
const FRAME_BYTES = 64;
const VIRTIO_F_VERSION_1 = 1n << 32n;

/** Where the areas of a ring and its buffers lie in our memory. */
const RINGS = [
  { desc: 0x0000, avail: 0x1000, used: 0x2000, buffers: 0x10000 }, // receive
  { desc: 0x4000, avail: 0x5000, used: 0x6000, buffers: 0x90000 }, // transmit
] as const;

const VRING_DESC_F_NEXT = 1;
const VRING_DESC_F_WRITE = 2;

const memory = GuestMemory.create(MEMORY_BYTES);
const { view, buffer } = arena();
const words = new Uint16Array(buffer);

const u16 = (offset: number): number => (memory.offset + offset) / 2;

function writeDescriptor(
  ring: number,
  index: number,
  address: number,
  flags: number,
  next = 0,
): void {
  const at = memory.offset + RINGS[ring]!.desc + 16 * index;
  const length = ring === 0 ? BUFFER_BYTES : NET_HEADER_BYTES + FRAME_BYTES;
  view.setBigUint64(at, BigInt(address), true);
  view.setUint32(at + 8, length, true);
  view.setUint16(at + 12, flags, true);
  view.setUint16(at + 14, next, true);
}

/** A well-formed ring whose descriptor n is buffer n, all of them owned by the driver. */
function prepareRing(ring: number): void {
  for (let index = 0; index < RING_SIZE; index++) {
    const address = RINGS[ring]!.buffers + BUFFER_BYTES * index;
    writeDescriptor(ring, index, address, ring === 0 ? VRING_DESC_F_WRITE : 0);
    words[u16(RINGS[ring]!.avail) + 2 + index] = index;
    if (ring === 1) writeFrame(memory.offset + address + NET_HEADER_BYTES);
  }
}

/** Broadcast, from a local address, of the type for local experiments. */
function writeFrame(at: number): void {
  for (let i = 0; i < 6; i++) view.setUint8(at + i, 0xff);
  view.setUint16(at + 6, 0x0200, false);
  view.setUint32(at + 8, process.pid, false);
  view.setUint16(at + 12, 0x88b5, false);
}

/** Gives the device every buffer that it has used. A used entry's id needs no look: it is ours. */
function keepBusy(ring: number, kick: Fd): void {
  const used = Atomics.load(words, u16(RINGS[ring]!.used) + 1);
  const avail = (used + RING_SIZE) & 0xffff;
  if (Atomics.load(words, u16(RINGS[ring]!.avail) + 1) === avail) return;
  Atomics.store(words, u16(RINGS[ring]!.avail) + 1, avail);
  signalEventfd(kick.number);
}

async function start(path: string): Promise<{ frontend: VhostUserFrontend; kicks: Fd[] }> {
  const frontend = await VhostUserFrontend.connect(path, { vringsPerQueue: 2 });
  await frontend.setOwner();
  await frontend.setFeatures(VIRTIO_F_VERSION_1);
  await frontend.setMemTable([memory.backendRegion()]);
  const kicks: Fd[] = [];
  for (const [ring, areas] of RINGS.entries()) {
    prepareRing(ring);
    const uva = (offset: number): bigint => BigInt(memory.baseUva + offset);
    const { desc, avail, used } = areas;
    const addresses = { descUva: uva(desc), availUva: uva(avail), usedUva: uva(used) };
    await frontend.setVringNum(ring, RING_SIZE);
    await frontend.setVringBase(ring, 0);
    await frontend.setVringAddr(ring, addresses);
    const kick = createEventfd(`kick of ring ${ring}`);
    const call = createEventfd(`call of ring ${ring}`);
    kicks.push(kick);
    await frontend.setVringCall(ring, call.number);
    await frontend.setVringKick(ring, kick.number);
    await frontend.setVringEnable(ring, true);
  }
  return { frontend, kicks };
}

/** What a line on standard input makes us do; the next kick shows it to the device. */
const MISDEEDS: Readonly<Record<string, () => void>> = {
  truncate: () => truncate(memory.fd.number, 0),
  'truncate-buffers': () => truncate(memory.fd.number, RINGS[0].buffers),
  'runaway-index': () => {
    const index = u16(RINGS[1].avail) + 1;
    Atomics.store(words, index, Atomics.load(words, index) + RING_SIZE + 1);
  },
  'bad-head': () =>
    words.fill(RING_SIZE, u16(RINGS[1].avail) + 2, u16(RINGS[1].avail) + 2 + RING_SIZE),
  'outside-memory': () => everyTransmit(MEMORY_BYTES + 4096, 0),
  'endless-chain': () => everyTransmit(RINGS[1].buffers, VRING_DESC_F_NEXT),
};

function everyTransmit(address: number, flags: number): void {
  for (let i = 0; i < RING_SIZE; i++) writeDescriptor(1, i, address, flags, (i + 1) % RING_SIZE);
}

const { frontend, kicks } = await start(process.argv[2] as string);
// Truncated memory reads as zeros on this side too: our own mapping is guarded like any other.
let isHonest = true;
const timer = setInterval(() => {
  if (isHonest) for (const [ring, kick] of kicks.entries()) keepBusy(ring, kick);
  else for (const kick of kicks) signalEventfd(kick.number);
}, 1);
frontend.closed.then((reason) => {
  clearInterval(timer);
  console.log(`closed: ${reason?.message ?? 'orderly'}`);
});
createInterface({ input: process.stdin })
  .on('line', (line) => {
    // The other misdeeds show when more buffers are published as before.
    if (line === 'truncate' || line === 'runaway-index') isHonest = false;
    MISDEEDS[line]?.();
    console.log('done');
  })
  .on('close', () => process.exit(0));
console.log('ready');
