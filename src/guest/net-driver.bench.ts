/**
 * What a frame costs in the guest's own loops: numbering and sending it, and taking and judging
 * it. The device between them moves nothing: it hands every transmitted chain back and declares
 * the receive buffers, which hold test frames, full. Run: node src/guest/net-driver.bench.ts
 */
import { strict as assert } from 'node:assert';
import { GuestMemory } from '../memory/index.ts';
import { arena } from '../sys/index.ts';
import { ChainBatch, DeviceQueue, putUsed, takeChains } from '../virtqueue/index.ts';
import { disableCalls, needsKick } from '../virtqueue/driver/index.ts';
import { stampFrames } from './generator.hot.ts';
import { GuestQueue, queueBytes, type QueuePlan } from './guest-queue.ts';
import { reapRx, reclaimTx, refillRx, releaseRx, sendSlots } from './net-driver.hot.ts';
import { RxFrames } from './rx-frames.ts';
import { SINK_COUNTERS, SINK_WINDOW, checkFrames } from './sink.hot.ts';
import { MAX_FLOWS, buildTestFrame } from './test-frame.ts';

const ROUNDS = 40_000;
const BURST = 64;

function bench(packed: boolean, sizeBytes: number): string {
  const plan: QueuePlan = {
    size: 256,
    packed,
    eventIdx: true,
    indirect: true,
    inOrder: false,
    name: 'bench',
    index: 0,
    slots: 256,
    slotBytes: 12 + 1518,
    segmentBytes: 4096,
    deviceWrites: true,
  };
  const memory = GuestMemory.create(2 * queueBytes(plan));
  const tx = new GuestQueue(plan, memory, 0);
  const rx = new GuestQueue(plan, memory, queueBytes(plan));
  const map = memory.region;
  const gpaMap = {
    count: 1,
    start: Float64Array.of(memory.baseGpa),
    end: Float64Array.of(memory.baseGpa + memory.sizeBytes),
    delta: Float64Array.of(map.offset - memory.baseGpa),
  };
  const device = (queue: GuestQueue): DeviceQueue => {
    const uva = queue.vring(0);
    const offset = (address: bigint): number => Number(address) - memory.baseUva + memory.offset;
    const areas = {
      descOffset: offset(uva.descUva),
      availOffset: offset(uva.availUva),
      usedOffset: offset(uva.usedUva),
    };
    const base = packed ? 0x8000_8000 : 0;
    return new DeviceQueue({ ...plan, ...areas, base }, gpaMap, arena().buffer);
  };
  const frame = buildTestFrame({
    sizeBytes,
    sourceMac: new Uint8Array(6),
    targetMac: new Uint8Array(6),
    flow: 0,
    run: 1,
    vlan: null,
    gso: 'none',
    gsoSize: 0,
  });
  for (const at of tx.slotOffset) arena().bytes.set(frame.bytes, at);
  const [txDevice, rxDevice] = [device(tx), device(rx)];
  const flows = new Uint16Array(plan.slots);
  const [next, due] = [new Uint32Array(MAX_FLOWS), new Uint32Array(MAX_FLOWS)];
  const runs = new Int32Array(MAX_FLOWS).fill(-1);
  const seen = new Int32Array((MAX_FLOWS * SINK_WINDOW) / 32);
  const counters = new Float64Array(SINK_COUNTERS);
  const frames = new RxFrames(0);
  const [sent, received] = [new ChainBatch(), new ChainBatch()];
  disableCalls(tx.ring);
  disableCalls(rx.ring);
  refillRx(rx);
  let [sendNs, receiveNs, good] = [0, 0, 0];
  for (let round = 0; round < ROUNDS; round++) {
    if (round === ROUNDS / 2) sendNs = receiveNs = 0; // warm now
    const t0 = performance.now();
    reclaimTx(tx);
    const { arena: view, slotOffset, freeSlots, freeCount } = tx;
    const { recordAt, recordBytes, records } = frame;
    stampFrames(
      view,
      slotOffset,
      flows,
      freeSlots,
      freeCount,
      BURST,
      recordAt,
      recordBytes,
      records,
      next,
      round,
    );
    assert.equal(sendSlots(tx, BURST, frame.bytes.length, false), BURST);
    needsKick(tx.ring);
    const t1 = performance.now();
    // The device: a frame of the one queue becomes one of the other.
    assert.equal(takeChains(txDevice, sent, BURST), BURST);
    assert.equal(takeChains(rxDevice, received, BURST), BURST);
    const { bytes } = arena();
    for (let i = 0; i < BURST; i++) {
      const from = sent.segOffset[sent.segFirst[i]];
      bytes.copyWithin(received.segOffset[received.segFirst[i]], from, from + frame.bytes.length);
      received.written[i] = frame.bytes.length;
      sent.written[i] = 0;
    }
    putUsed(txDevice, sent, 0, BURST);
    putUsed(rxDevice, received, 0, BURST);
    const t2 = performance.now();
    const count = reapRx(rx, frames, false);
    good += checkFrames(
      view,
      frames.offset,
      frames.len,
      count,
      runs,
      due,
      seen,
      counters,
      16,
      round,
    );
    releaseRx(rx, frames);
    refillRx(rx);
    needsKick(rx.ring);
    const t3 = performance.now();
    sendNs += t1 - t0;
    receiveNs += t3 - t2;
  }
  assert.equal(good, ROUNDS * BURST);
  frames.close();
  for (const queue of [tx, rx]) queue.close();
  memory.close();
  const perFrame = (ms: number): string => ((ms * 1e6) / (BURST * (ROUNDS / 2))).toFixed(1);
  const kind = `${packed ? 'packed' : 'split'} ${sizeBytes}`;
  const [sending, receiving] = [perFrame(sendNs), perFrame(receiveNs)];
  return `${kind.padEnd(12)} send ${sending} ns, receive and check ${receiving} ns`;
}

for (let pass = 0; pass < 3; pass++) {
  for (const packed of [false, true]) {
    for (const sizeBytes of [64, 1500]) console.log(bench(packed, sizeBytes));
  }
}
