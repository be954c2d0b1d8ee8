/** Faults by rules, and the power-cut model held against what a disk may do. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, test } from 'node:test';
import { createMemoryImage, type DiskImage } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import { MemoryLayer } from '../layer/memory-layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import type { MemoryEngineSpec } from '../memory-engine.ts';
import type { FaultRule } from '../stack/stack-spec.ts';
import { FaultLayer } from './fault-layer.ts';
import { openFaultLayer } from './open-fault-layer.ts';
import { type CutResult, PowerCutLayer } from './power-cut-layer.ts';
import { SeededRandom } from './random.ts';

const DISK_BYTES = 256 * 1024;
const SECTORS = DISK_BYTES / 512;
const images: DiskImage[] = [];
after(async () => {
  for (const image of images) await image.close();
});

function memoryLayer(sizeBytes = DISK_BYTES): MemoryLayer {
  const image = createMemoryImage(sizeBytes);
  images.push(image);
  return new MemoryLayer(image.spec as MemoryEngineSpec);
}

async function readAt(layer: Layer, at: number, sizeBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  await layer.read(at, bytes);
  return bytes;
}

const filled = (value: number, sizeBytes: number): Uint8Array =>
  new Uint8Array(sizeBytes).fill(value);

function faulty(...rules: FaultRule[]): FaultLayer {
  return new FaultLayer(memoryLayer(), { kind: 'fault', seed: 3, rules });
}

test('an error is met where its rule says, so often, and says why', async () => {
  const rule = { op: 'read', at: 4096, sizeBytes: 512, times: 2, action: 'error' } as const;
  const layer = faulty({ ...rule, errno: 'ENOSPC' });
  await readAt(layer, 0, 4096);
  await readAt(layer, 4608, 4096);
  await layer.write(4096, filled(1, 512), false);
  const text =
    /fault\(seed 3\) over memory:\d+: read at byte 0 fails with ENOSPC by rule: error of/;
  await assert.rejects(readAt(layer, 0, 8192), {
    code: 'ERR_VRING_DISK_IO',
    errno: 28,
    message: text,
  });
  await assert.rejects(readAt(layer, 4096, 512), { errno: 28 });
  assert.equal((await readAt(layer, 4096, 512))[0], 1, 'twice and no more');
  assert.equal(layer.counters()['faultErrors'], 2);
});

test('a torn write leaves whole sectors from its start, and fails', async () => {
  const layer = faulty({ op: 'write', action: 'torn' });
  const lengths = new Set<number>();
  for (let round = 0; round < 50; round++) {
    await layer.control('faults', []);
    await layer.write(0, filled(0, 8192), false);
    await layer.control('faults', [{ op: 'write', action: 'torn' }]);
    await assert.rejects(layer.write(0, filled(9, 8192), false), { errno: 5 });
    const bytes = await readAt(layer, 0, 8192);
    const length = bytes.indexOf(0);
    assert.ok(length >= 0 && length % 512 === 0, `${length}`);
    assert.ok(bytes.subarray(length).every((byte) => byte === 0));
    lengths.add(length);
  }
  assert.ok(lengths.size > 5, `lengths ${[...lengths].join()}`);
});

test('a delay is one, and rules behind it are met as well', async () => {
  const delay = { op: 'flush', action: 'delay', ms: 30 } as const;
  const layer = faulty(delay, { op: 'flush', action: 'error', errno: 'EIO' });
  const startMs = performance.now();
  await assert.rejects(layer.flush(), { errno: 5 });
  assert.ok(performance.now() - startMs >= 29);
  assert.equal(layer.counters()['faultDelays'], 1);
});

test('a flush that failed stays failed, whatever the rules are then', async () => {
  const layer = faulty({ op: 'flush', times: 1, action: 'error', errno: 'EIO' });
  await assert.rejects(layer.flush());
  await layer.control('faults', []);
  await assert.rejects(layer.flush());
  await assert.rejects(layer.write(0, filled(1, 512), true));
  await assert.rejects(layer.zero(0, 512, { unmap: false, fua: true }));
  await layer.write(0, filled(1, 512), false);
});

test('a probability is one, and a seed repeats it', async () => {
  const met = async (): Promise<string> => {
    const rule = { op: 'any', probability: 0.3, action: 'error', errno: 'EIO' } as const;
    const layer = faulty(rule);
    let text = '';
    for (let i = 0; i < 400; i++) {
      text += await readAt(layer, 0, 512).then(
        () => '.',
        () => 'x',
      );
    }
    return text;
  };
  const text = await met();
  assert.equal(await met(), text);
  const errors = text.split('x').length - 1;
  assert.ok(errors > 80 && errors < 160, `${errors} of 400`);
});

test('rules that say nothing are refused by name', async () => {
  const layer = faulty();
  const cases: [unknown, RegExp][] = [
    ['no list', /faults: expected a list of at most 64/],
    [[null], /faults\[0\]: is no rule/],
    [
      [{ op: 'write', action: 'melt' }],
      /faults\[0\]\.action: is melt, expected error, delay, torn/,
    ],
    [[{ op: 'wipe', action: 'torn' }], /faults\[0\]\.op: is wipe, expected read/],
    [[{ op: 'any', action: 'error', errno: 'EWRONG' }], /\.errno: 'EWRONG' is no errno/],
    [[{ op: 'any', action: 'delay', ms: 1e9 }], /\.ms: is 1000000000, expected 0 to 600000/],
    [[{ op: 'any', action: 'torn', probability: 2 }], /\.probability: is 2, expected 0 to 1/],
  ];
  for (const [rules, message] of cases) {
    await assert.rejects(layer.control('faults', rules), message);
  }
  await assert.rejects(layer.control('other', 1), { code: 'ERR_VRING_DISK_CONTROL' });
});

/** Reads and writes of a medium that take a while, so that what is concurrent overlaps. */
class SlowLayer extends PassLayer {
  readonly description = 'slow';
  override async read(at: number, into: Uint8Array): Promise<void> {
    await super.read(at, into);
    await sleep(1);
  }
  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    await sleep(1);
    await super.write(at, from, fua);
  }
}

/** What each sector may have: the first is durable, the others were written since. */
class Model {
  readonly possible: number[][] = Array.from({ length: SECTORS }, () => [0]);
  #next = 1;

  write(sector: number, count: number): { bytes: Uint8Array; value: number } {
    const value = this.#next++;
    const words = new Uint32Array((count * 512) / 4).fill(value);
    for (let s = sector; s < sector + count; s++) this.possible[s]!.push(value);
    return { bytes: new Uint8Array(words.buffer), value };
  }

  get newest(): number[] {
    return this.possible.map((values) => values.at(-1)!);
  }

  /** These values are durable: what is older cannot come back. */
  durable(values: readonly number[], first = 0): void {
    for (const [i, value] of values.entries()) {
      const possible = this.possible[first + i]!;
      possible.splice(0, Math.max(0, possible.indexOf(value)));
    }
  }
}

function valueOf(bytes: Uint8Array, sector: number): number {
  const words = new Uint32Array(bytes.slice(sector * 512, (sector + 1) * 512).buffer);
  assert.ok(
    words.every((word) => word === words[0]),
    `sector ${sector} is torn within`,
  );
  return words[0]!;
}

test('a cut leaves of each sector what was flushed or written since, and nothing else', async () => {
  let [kept, lost, torn] = [0, 0, 0];
  for (let seed = 1; seed <= 60; seed++) {
    const random = new SeededRandom(seed);
    const medium = memoryLayer();
    const layer = new PowerCutLayer(new SlowLayer(medium));
    const model = new Model();
    const underWay: Promise<unknown>[] = [];
    for (let i = 0; i < 60; i++) {
      const sector = random.below(SECTORS - 16);
      const count = 1 + random.below(16);
      const draw = random.next();
      if (draw < 0.04) {
        const { newest } = model;
        const flush = layer.flush().then(() => model.durable(newest));
        if (draw < 0.02) await flush;
        else underWay.push(flush); // what is written meanwhile is not in it
      } else if (draw < 0.08) {
        const before = model.newest;
        const now = await readAt(layer, 0, DISK_BYTES);
        for (let s = 0; s < SECTORS; s++) assert.equal(valueOf(now, s), before[s]);
      } else {
        const { bytes, value } = model.write(sector, count);
        const fua = draw > 0.95;
        const done = layer.write(sector * 512, bytes, fua);
        if (fua) {
          await done;
          model.durable(
            Array.from({ length: count }, () => value),
            sector,
          );
        } else underWay.push(done);
      }
    }
    await Promise.all(underWay);
    // A flush that the cut interrupts, or that just made it.
    const { newest } = model;
    const flush = seed % 3 === 0 ? layer.flush().then(() => model.durable(newest)) : null;
    flush?.catch(() => undefined);
    const result = (await layer.control('cut', { seed })) as CutResult;
    await flush?.catch((error: { errno: number }) => assert.equal(error.errno, 5));
    const after = await readAt(medium, 0, DISK_BYTES);
    for (let s = 0; s < SECTORS; s++) {
      const value = valueOf(after, s);
      const allowed = model.possible[s]!;
      assert.ok(allowed.includes(value), `seed ${seed}, sector ${s}: ${value}, not of ${allowed}`);
    }
    kept += result.kept;
    lost += result.lost;
    torn += result.torn;
    await assert.rejects(readAt(layer, 0, 512), { errno: 5, message: /the power is cut/ });
    for (const request of [
      layer.write(0, filled(1, 512), false),
      layer.flush(),
      layer.discard(0, 512),
      layer.zero(0, 512, { unmap: true, fua: false }),
    ]) {
      await assert.rejects(request, { errno: 5 });
    }
    assert.deepEqual(await layer.control('cut', { seed: 99 }), result, 'once');
    await layer.close();
  }
  assert.ok(kept > 100 && lost > 100 && torn > 50, `${kept} kept, ${lost} lost, ${torn} torn`);
});

test('the same seed cuts the same', async () => {
  const cut = async (seed: number): Promise<Uint8Array> => {
    const medium = memoryLayer();
    const layer = new PowerCutLayer(medium);
    for (let i = 1; i < 40; i++) await layer.write(i * 1024, filled(i, 2048), false);
    await layer.control('cut', { seed });
    return readAt(medium, 0, DISK_BYTES);
  };
  assert.deepEqual(await cut(5), await cut(5));
  assert.notDeepEqual(await cut(5), await cut(6));
});

test('zeros are as volatile as data, a close is not a cut', async () => {
  const medium = memoryLayer();
  const layer = new PowerCutLayer(medium);
  await layer.write(0, filled(7, 8192), true);
  await layer.zero(0, 4096, { unmap: true, fua: false });
  assert.equal((await readAt(layer, 0, 512))[0], 0);
  assert.equal((await readAt(medium, 0, 512))[0], 7, 'not there yet');
  assert.deepEqual(await layer.extents(0, 512), [{ at: 0, sizeBytes: 512, kind: 'data' }]);
  const { buffer } = await readAt(layer, 0, 8192);
  await layer.flush();
  assert.deepEqual(await readAt(medium, 0, 8192), new Uint8Array(buffer));
  await layer.write(512, filled(3, 512), false);
  assert.equal(layer.counters()['volatileBytes'], 512);
  await layer.close();
  assert.equal((await readAt(medium, 512, 512))[0], 3, 'written back');
});

test('a cache that is full writes back', async () => {
  const medium = memoryLayer(80 * 2 ** 20);
  const layer = new PowerCutLayer(medium);
  for (let at = 0; at < 80 * 2 ** 20; at += 2 ** 20)
    await layer.write(at, filled(1, 2 ** 20), false);
  const { volatileBytes, volatileWriteBacks } = layer.counters();
  assert.ok(volatileBytes! <= 64 * 2 ** 20, `${volatileBytes}`);
  assert.equal(volatileWriteBacks, 1);
});

test('rules stand over the cache, and pass a cut on', async () => {
  const layer = openFaultLayer(memoryLayer(), { kind: 'fault', cache: 'volatile' });
  await layer.write(0, filled(1, 512), false);
  const result = (await layer.control('cut', {})) as CutResult;
  assert.equal(result.requests, 1);
  await assert.rejects(layer.control('cut', { seed: 'x' }), /seed: is x, expected a whole number/);
});
