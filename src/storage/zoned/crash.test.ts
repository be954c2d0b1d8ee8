/**
 * A zoned medium whose process, or whose power, ends at random moments: what was answered is there,
 * what was answered before a flush outlives the power, and no pointer is ahead of its data.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PowerCutLayer } from '../fault/power-cut-layer.ts';
import type { Layer } from '../layer/layer.ts';
import { randomOf } from '../qcow2/testing.ts';
import { BufferLayer, ONCE, openZoned, ZONE } from './testing.ts';
import { ZONE_EMPTY, ZONE_FULL } from './zone-types.ts';
import type { ZonedLayer } from './zoned-layer.ts';

const ROUNDS = Number(process.env['VRING_CRASH_ROUNDS'] ?? 10);
const SEED = Number(process.env['VRING_SEED'] ?? Date.now() % 100_000);
const ZONES = 6;

/** One zone by what was answered: the stamps of its writes, in order. */
type Model = {
  /** Answered, and answered before a flush that was answered. */
  stamps: number[];
  durable: number;
  finished: boolean;
  /** Begun and not answered. */
  begun: Set<number>;
  isUncertain: boolean;
};

const fresh = (): Model => ({
  stamps: [],
  durable: 0,
  finished: false,
  begun: new Set(),
  isUncertain: false,
});

function block(stamp: number): Buffer {
  const bytes = Buffer.alloc(4096);
  for (let at = 0; at < 4096; at += 8) bytes.writeUInt32LE(stamp, at);
  return bytes;
}

/** Works until it fails or is told to stop. */
class Worker {
  readonly zones = Array.from({ length: ZONES }, fresh);
  isOver = false;
  /** Appends that were answered. */
  answered = 0;
  #stamp = 0;
  readonly #layer: ZonedLayer;
  readonly #random: (below: number) => number;

  constructor(layer: ZonedLayer, random: (below: number) => number) {
    this.#layer = layer;
    this.#random = random;
  }

  async lane(): Promise<void> {
    try {
      while (!this.isOver) await this.#step();
    } catch (error) {
      if (!this.isOver && !/the power is cut/.test(String(error))) throw error;
    }
  }

  async #step(): Promise<void> {
    const index = this.#random(ZONES);
    const model = this.zones[index]!;
    const draw = this.#random(100);
    if (draw < 4) {
      const before = this.zones.map(({ stamps }) => stamps.length);
      const generations = this.zones.map(({ stamps }) => stamps);
      await this.#layer.flush();
      for (const [i, zone] of this.zones.entries()) {
        if (zone.stamps === generations[i]) zone.durable = Math.max(zone.durable, before[i]!);
      }
    } else if (model.isUncertain) {
      await sleep(1);
    } else if (draw < 8) {
      await this.#whole(index, model, draw < 6 ? 'reset' : 'finish');
    } else if (!model.finished && model.stamps.length + model.begun.size < ZONE / 4096) {
      await this.#append(index, model);
    } else {
      await this.#whole(index, model, 'reset');
    }
  }

  async #append(index: number, model: Model): Promise<void> {
    const stamp = ++this.#stamp;
    model.begun.add(stamp);
    const at = await this.#layer.zones.append(index * ZONE, block(stamp), ONCE, null);
    this.answered++;
    model.begun.delete(stamp);
    model.stamps[(at - index * ZONE) / 4096] = stamp;
  }

  async #whole(index: number, model: Model, action: 'reset' | 'finish'): Promise<void> {
    model.isUncertain = true; // nothing else begins meanwhile; what was begun comes first
    while (model.begun.size > 0 && !this.isOver) await sleep(1);
    if (this.isOver) return;
    await this.#layer.zones.manage(action, index * ZONE, { again: false });
    if (action === 'reset') this.zones[index] = fresh();
    else Object.assign(model, { isUncertain: false, finished: true, durable: model.stamps.length });
  }
}

/** What is there after a crash, against what may be. */
async function judge(layer: ZonedLayer, zones: readonly Model[], needs: 'all' | 'durable') {
  for (const [index, model] of zones.entries()) {
    const [info] = layer.zones.report(index * ZONE, 1);
    const bytes = Buffer.alloc(ZONE);
    await layer.read(index * ZONE, bytes);
    const stamps = Array.from({ length: ZONE / 4096 }, (_, i) => bytes.readUInt32LE(4096 * i));
    const count = stamps.indexOf(0) < 0 ? stamps.length : stamps.indexOf(0);
    const where = `zone ${index}: ${JSON.stringify({ info, stamps, model })}`;
    assert.ok(
      bytes.subarray(4096 * count).every((byte) => byte === 0),
      `zeros beyond, ${where}`,
    );
    if (model.isUncertain && count === 0) continue; // it was being reset
    const pointer = (info!.pointer - info!.at) / 4096;
    if (info!.condition !== ZONE_FULL) assert.equal(pointer, count, `pointer, ${where}`);
    if (info!.condition === ZONE_EMPTY) assert.equal(count, 0, where);
    if (model.finished) assert.equal(info!.condition, ZONE_FULL, where);
    const least = needs === 'all' ? model.stamps.length : model.durable;
    assert.ok(count >= least, `${least} writes are due, ${where}`);
    for (let i = 0; i < count; i++) {
      assert.ok(bytes.subarray(4096 * i, 4096 * (i + 1)).equals(block(stamps[i]!)), where);
      const due = model.stamps[i];
      assert.ok(stamps[i] === due || (due === undefined && model.begun.has(stamps[i]!)), where);
    }
  }
}

async function run(over: (below: BufferLayer) => Layer, seed: number) {
  const random = randomOf(seed);
  const below = new BufferLayer(Buffer.alloc(2 ** 20 + ZONES * ZONE));
  // Writes take time, so that they overlap and a crash finds some under way.
  below.onWrite = () => (random(4) === 0 ? sleep(random(2)) : undefined);
  const top = over(below);
  const layer = await openZoned(top, { zoneBytes: ZONE });
  const worker = new Worker(layer, random);
  const lanes = Array.from({ length: 6 }, () => worker.lane());
  await sleep(10 + random(40));
  while (worker.answered < 80) await sleep(1); // a busy machine
  return { below, top, worker, lanes, random };
}

test('the process ends: every answered write is there, and nothing else', async () => {
  console.log(`VRING_SEED=${SEED} VRING_CRASH_ROUNDS=${ROUNDS}`);
  let entries = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const { below, worker, lanes } = await run((medium) => medium, SEED + round);
    const left = Buffer.from(below.bytes); // the page cache, at this moment
    const model = structuredClone(worker.zones);
    worker.isOver = true;
    await Promise.all(lanes);
    const again = await openZoned(new BufferLayer(left));
    await judge(again, model, 'all');
    assert.equal(again.counters()['zone_entries_void'], 0);
    entries += again.counters()['zone_entries_replayed']!;
  }
  console.log(`${entries} entries were replayed`);
  assert.ok(entries > 5 * ROUNDS, `${entries} entries were replayed`);
});

test('the power ends: what was flushed is there, and no pointer is ahead of its data', async () => {
  let lost = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const cut = (medium: BufferLayer): Layer => new PowerCutLayer(medium);
    const { below, top, worker, lanes, random } = await run(cut, SEED + round);
    const model = structuredClone(worker.zones);
    worker.isOver = true;
    await top.control('cut', { seed: random(2 ** 31) });
    await Promise.all(lanes);
    below.onWrite = null;
    const again = await openZoned(below);
    await judge(again, model, 'durable');
    lost += again.counters()['zone_entries_void']!;
    await again.zones.append(0, block(1), ONCE, null).catch(() => undefined);
    await openZoned(below);
  }
  console.log(`${lost} entries had lost their data`);
  assert.ok(lost > 0, 'data was lost whose entry was not');
});
