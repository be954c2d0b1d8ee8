/**
 * A guest that changes its ring while it is read: whatever is planned to be copied lies in its
 * memory, for every word is read once and judged as it was read. Each loop runs against a thread
 * that flips addresses, lengths, flags and heads between good and bad; a reader that reads twice is
 * caught by the same thread.
 */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { BATCH } from '../../base/limits.ts';
import { FRAME_BATCH_BYTES, type FrameBatch } from '../../switch/frame-batch.ts';
import { arena, CopyPlan } from '../../sys/arena.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import { takeChains } from '../../virtqueue/device.hot.ts';
import { VIRTIO_F_RING_PACKED } from '../../wire/virtio.ts';
import { readParts } from './direct-parts.hot.ts';
import { PASSES, type RaceData, STOP } from './direct-race-fixture.ts';
import { readDirect } from './direct-read.hot.ts';
import { writeDirect } from './direct-write.hot.ts';
import { frameBatch, PortFixture } from './port-fixture.ts';

const SLOTS = 64;
/** Behind flags and idx. */
const AVAIL_ENTRIES_AT = 4;
const CASE_MS = 200;
const LONGEST_MS = 20_000;
const BUFFER_BYTES = 2048;
const ALL = Int32Array.from({ length: BATCH }, (_, i) => i);

type Loop = 'read' | 'parts' | 'write' | 'take';

for (const packed of [false, true]) {
  for (const loop of ['read', 'parts', 'write', 'take'] as const) {
    const name = `${loop}, ${packed ? 'packed' : 'split'}`;
    test(`nothing outside of the guest's memory is planned: ${name}`, async (t) => {
      await using stage = await Stage.open(packed, loop);
      let calls = 0;
      let whole = 0; // all descriptors were good
      stage.whileFlipped(() => {
        const taken = stage.call();
        stage.check();
        calls++;
        if (taken === SLOTS || taken === SLOTS / 2) whole++;
        return calls >= 1000 && whole < calls;
      });
      t.diagnostic(`${calls} calls, ${whole} of which met no bad descriptor`);
    });
  }
}

test('who reads an address twice is caught', async () => {
  await using stage = await Stage.open(false, 'take');
  const { desc } = stage.queue;
  const { view } = arena(); // V8 makes one read of two by the same array
  let wrong = 0;
  stage.whileFlipped(() => {
    for (let at = 1; at < desc.length; at += 4) {
      if (desc[at] === 0 && view.getInt32(desc.byteOffset + 4 * at, true) !== 0) wrong++;
    }
    return wrong > 0;
  });
  ok(wrong > 0);
});

/** A ring that is full of good chains, and the thread that flips their words. */
class Stage {
  readonly queue: DeviceQueue;
  readonly #fixture: PortFixture;
  readonly #loop: Loop;
  readonly #words = new Int32Array(new SharedArrayBuffer(8));
  readonly #plan = new CopyPlan(4096);
  readonly #chains = new ChainBatch(BATCH, 512, true);
  readonly #in: FrameBatch;
  readonly #out: FrameBatch;
  readonly #start: { readonly nextAvail: number; readonly availWrap: number };
  #thread: Worker | null = null;

  private constructor(packed: boolean, loop: Loop) {
    this.#loop = loop;
    const features = packed ? [VIRTIO_F_RING_PACKED] : [];
    const options = { features, ringSize: SLOTS, bufferBytes: BUFFER_BYTES };
    this.#fixture = new PortFixture(options);
    const ring = this.#fixture.rings[loop === 'write' ? 0 : 1]!;
    for (let k = 0; k < (loop === 'parts' ? SLOTS / 2 : SLOTS); k++) {
      const at = this.#fixture.buffer(k);
      if (loop === 'write') ring.add([], [[at, BUFFER_BYTES]]);
      else if (loop === 'parts')
        ring.add([[at, 12], [at + 12, 300]], []); // prettier-ignore
      else ring.add([[at, 312]], []);
    }
    this.queue = ring.vring.queue;
    this.#start = { nextAvail: this.queue.nextAvail, availWrap: this.queue.availWrap };
    this.#in = frameBatch();
    this.#out = frameBatch();
    this.#out.plain = 1;
    this.#out.count = BATCH;
    for (let i = 0; i < BATCH; i++) {
      this.#out.headerAt[i] = i * 96 + 16;
      this.#out.headerLen[i] = this.#out.frameLen[i] = 64;
    }
  }

  static async open(packed: boolean, loop: Loop): Promise<Stage> {
    const stage = new Stage(packed, loop);
    const { desc, avail } = stage.queue;
    const availAt = packed ? null : avail.byteOffset + AVAIL_ENTRIES_AT;
    const words = stage.#words.buffer as SharedArrayBuffer;
    const data: RaceData = { size: SLOTS, descAt: desc.byteOffset, availAt, words };
    const file = new URL('./direct-race-fixture.ts', import.meta.url);
    stage.#thread = new Worker(file, { workerData: data });
    const until = performance.now() + LONGEST_MS;
    while (stage.#passes() < 2) {
      ok(performance.now() < until, 'the other thread never began');
      await sleep(1);
    }
    return stage;
  }

  /** Until enough was seen, for CASE_MS at least. The thread has flipped meanwhile. */
  whileFlipped(step: () => boolean): void {
    const from = performance.now();
    const first = this.#passes();
    for (let isEnough = false; !isEnough || performance.now() - from < CASE_MS;) {
      isEnough = step();
      ok(performance.now() - from < LONGEST_MS, 'the two threads never met: no processor free?');
    }
    ok(this.#passes() !== first, 'the other thread stood still');
  }

  /** Takes what there is, from the start of the ring again. Returns how many chains. */
  call(): number {
    const q = this.queue;
    q.nextAvail = this.#start.nextAvail;
    q.availWrap = this.#start.availWrap;
    q.fault = 0;
    const plan = this.#plan;
    plan.count = 0;
    this.#in.count = this.#in.segments = 0;
    const chains = this.#chains;
    chains.count = chains.segments = 0;
    if (this.#loop === 'write') return writeDirect(q, chains, 0, plan, this.#out, ALL, BATCH, 0);
    if (this.#loop === 'take') return takeChains(q, chains, BATCH);
    const read = this.#loop === 'read' ? readDirect : readParts;
    const found = read(q, chains, plan, this.#in);
    return found < 0 ? ~found : found;
  }

  /** Every range of what `call` planned is in the guest's memory, or in a header slot. */
  check(): void {
    const plan = this.#plan;
    for (let i = 0; i < plan.count; i++) {
      this.#checkRange(plan.source[i]!, plan.length[i]!);
      this.#checkRange(plan.target[i]!, plan.length[i]!);
    }
    const of = this.#loop === 'take' ? this.#chains : this.#in;
    const { segments, segOffset, segLen } = of;
    for (let s = 0; s < segments; s++) this.#checkRange(segOffset[s]!, segLen[s]!);
  }

  #checkRange(at: number, sizeBytes: number): void {
    const { offset, sizeBytes: guestBytes } = this.#fixture.memory;
    const isIn = (from: number, bytes: number): boolean =>
      sizeBytes >= 0 && at >= from && at + sizeBytes <= from + bytes;
    if (isIn(offset, guestBytes)) return;
    if (isIn(this.#in.headersAt, FRAME_BATCH_BYTES)) return;
    equal(isIn(this.#out.headersAt, FRAME_BATCH_BYTES), true, `${at} of ${sizeBytes} bytes`);
  }

  #passes(): number {
    return Atomics.load(this.#words, PASSES);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#thread!.once('exit', resolve));
    Atomics.store(this.#words, STOP, 1);
    await ended;
    this.#fixture.close();
  }
}
