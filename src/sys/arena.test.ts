import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import {
  arena,
  claimFaults,
  CopyPlan,
  createMemfd,
  type Fd,
  mapPrivateAt,
  mapRegionAt,
  readArena,
  regionFaults,
  regionGeneration,
  releaseRegion,
  retainRegion,
  STRAY_FAULTS,
  truncate,
  writevArena,
} from './index.ts';

const MIB = 1024 * 1024;
const HUGE = 2 * MIB;
const indexUrl = new URL('./index.ts', import.meta.url).href;

/** Places of these tests, far from the allocator of memory/ and from each other. */
let place = arena().sizeBytes / 2;
function nextPlace(): number {
  place += 1024 * MIB;
  return place;
}

/** Runs `body` in a worker, with `s` the names of sys and `data` what is passed. */
async function inWorker(body: string, data: unknown): Promise<unknown> {
  const source = `
    import * as s from ${JSON.stringify(indexUrl)};
    import { parentPort, workerData as data } from 'node:worker_threads';
    const run = async () => { ${body} };
    parentPort.postMessage(await run());`;
  const url = new URL(`data:text/javascript,${encodeURIComponent(source)}`);
  const worker = new Worker(url, { workerData: data });
  const exited = once(worker, 'exit'); // may come in the same turn as the message
  const [result] = await once(worker, 'message');
  await exited;
  return result;
}

function childEnds(body: string): { signal: string | null; status: number | null; text: string } {
  const source = `import * as s from ${JSON.stringify(indexUrl)}; s.arena(); ${body}`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
  });
  return { signal: child.signal, status: child.status, text: child.stdout + child.stderr };
}

test('a mapped memfd is shared, and unmapped with its last reference', () => {
  const { view, bytes } = arena();
  const at = nextPlace();
  using fd = createMemfd('test', MIB);
  const one = mapRegionAt(at, MIB, fd.number, 0);
  const two = mapRegionAt(at + 4 * MIB, MIB / 2, fd.number, MIB / 2);
  view.setUint32(at + MIB / 2 + 8, 0xfeedbeef, true);
  assert.equal(view.getUint32(at + 4 * MIB + 8, true), 0xfeedbeef);
  assert.equal(Atomics.add(bytes, at, 3), 0);
  assert.equal(Atomics.load(bytes, at), 3);

  const generation = regionGeneration(one);
  retainRegion(one);
  releaseRegion(one);
  assert.equal(bytes[at], 3);
  releaseRegion(one);
  releaseRegion(two);
  assert.notEqual(regionGeneration(one), generation);
  assert.throws(() => releaseRegion(one), { code: 'ERR_VRING_ASSERTION' });
  assert.throws(() => retainRegion(one), { code: 'ERR_VRING_ASSERTION' });
  assert.throws(() => retainRegion(0), { code: 'ERR_VRING_ASSERTION' });

  const strays = Atomics.load(regionFaults(), STRAY_FAULTS);
  assert.equal(bytes[at], 0, 'gone, and the access is survived');
  assert.equal(Atomics.load(regionFaults(), STRAY_FAULTS), strays + 1);
});

test('mapping says what is wrong', () => {
  const at = nextPlace();
  using fd = createMemfd('test', MIB);
  const handle = mapRegionAt(at, MIB, fd.number, 0);
  assert.throws(() => mapPrivateAt(at + MIB - 4096, MIB), { errnoName: 'EEXIST' });
  assert.throws(() => mapRegionAt(at + 1, MIB, fd.number, 0), { errnoName: 'EINVAL' });
  assert.throws(() => mapRegionAt(at + HUGE, MIB, fd.number, 1), { errnoName: 'EINVAL' });
  assert.throws(() => mapRegionAt(at + HUGE, 0, fd.number, 0), { errnoName: 'EINVAL' });
  const end = arena().sizeBytes;
  assert.throws(() => mapPrivateAt(end - 4096, 8192), { errnoName: 'EFAULT' });
  assert.throws(() => mapPrivateAt(2 ** 53 - 4096, 4096), { errnoName: 'EFAULT' });
  releaseRegion(handle);
});

async function survivesTruncation(fd: Fd, pageBytes: number, pages: number): Promise<void> {
  const { view, bytes } = arena();
  const at = nextPlace();
  const size = pages * pageBytes;
  const region = mapRegionAt(at, size, fd.number, 0);
  const other = mapPrivateAt(at + size + HUGE, 4096);
  bytes.fill(0xaa, at, at + size);
  bytes.fill(0xbb, at + size + HUGE, at + size + HUGE + 4096);
  assert.equal(regionFaults()[region], 0);

  truncate(fd.number, 0);
  const middle = at + pageBytes * (pages >> 1) + 5;
  assert.equal(bytes[middle], 0);
  assert.equal(regionFaults()[region], 1);
  view.setUint32(middle, 77, true);
  assert.equal(view.getUint32(middle, true), 77);
  assert.equal(bytes[at + size - 1], 0);
  assert.equal(regionFaults()[region], 1, 'one fault covered the rest of the region');

  // The worker touches a page in front of that, by a write, a loop and an atomic.
  const result = await inWorker(
    `const { view, bytes } = s.arena();
     view.setFloat64(data.at, 1.5);
     let sum = 0;
     for (let i = 8; i < data.size; i++) sum += bytes[data.at + i];
     Atomics.add(bytes, data.at + 9, 1);
     return { sum, back: view.getFloat64(data.at), faults: s.regionFaults()[data.region] };`,
    { at, size, region },
  );
  assert.deepEqual(result, { sum: 77, back: 1.5, faults: 2 });
  assert.equal(regionFaults()[region], 2);
  const claim = 's.claimFaults(data.region)';
  const claims = [await inWorker(`return ${claim};`, { region }), claimFaults(region)];
  assert.deepEqual(claims, [true, false], 'one thread tells');
  assert.equal(view.getFloat64(at), 1.5, 'both threads see the same pages');

  assert.equal(bytes[at + size + HUGE], 0xbb);
  assert.equal(regionFaults()[other], 0);
  releaseRegion(region);
  releaseRegion(other);
  const again = mapPrivateAt(at, 4096);
  assert.equal(bytes[at], 0);
  assert.equal(regionFaults()[again], 0);
  releaseRegion(again);
}

test('memory that its owner truncates reads as zeros, in all threads', async () => {
  using fd = createMemfd('test', 16 * 4096);
  await survivesTruncation(fd, 4096, 16);
});

test('huge pages that their owner truncates read as zeros', async (t) => {
  const file = '/proc/sys/vm/nr_hugepages';
  const before = Number(readFileSync(file, 'utf8'));
  try {
    writeFileSync(file, String(before + 8));
  } catch (error) {
    t.skip(`cannot reserve huge pages: ${(error as Error).message}`);
    return;
  }
  try {
    if (Number(readFileSync(file, 'utf8')) < before + 8) {
      t.skip('the kernel has no eight huge pages left');
      return;
    }
    using fd = createMemfd('test', 4 * HUGE, { hugePages: true });
    await survivesTruncation(fd, HUGE, 4);
  } finally {
    // Others may have changed it meanwhile: take back what we added, no more.
    writeFileSync(file, String(Math.max(0, Number(readFileSync(file, 'utf8')) - 8)));
  }
});

test('copies survive truncation, system calls answer EFAULT', () => {
  const { bytes } = arena();
  const at = nextPlace();
  using fd = createMemfd('test', 8 * 4096);
  using sink = createMemfd('sink', 0);
  const region = mapRegionAt(at, 8 * 4096, fd.number, 0);
  const target = mapPrivateAt(at + HUGE, 4096);
  bytes.fill(7, at + HUGE, at + HUGE + 4096);
  truncate(fd.number, 0);
  assert.equal(writevArena(sink.number, Float64Array.of(at), Int32Array.of(64), 0, 1), -14);
  assert.equal(regionFaults()[region], 0);
  const plan = new CopyPlan(4);
  plan.source[0] = at;
  plan.target[0] = at + HUGE;
  plan.length[0] = 4096;
  plan.count = 1;
  plan.run();
  assert.equal(regionFaults()[region], 1);
  assert.equal(bytes.subarray(at + HUGE, at + HUGE + 4096).indexOf(7), -1);
  releaseRegion(region);
  releaseRegion(target);
});

test('a copy plan copies in order and refuses what is outside of the arena', () => {
  const { bytes, sizeBytes } = arena();
  const at = nextPlace();
  const region = mapPrivateAt(at, 65536);
  for (let i = 0; i < 1000; i++) bytes[at + i] = i;
  const plan = new CopyPlan(3);
  plan.source.set([at, at + 4096, at + 4098]);
  plan.target.set([at + 4096, at + 4098, at + 8192]);
  plan.length.set([1000, 996, 0]);
  plan.count = 3;
  plan.run();
  assert.equal(plan.count, 0);
  assert.equal(bytes[at + 4096 + 1], 1);
  assert.equal(bytes[at + 4098 + 10], 10, 'overlap is moved as if through a buffer');
  for (const [source, target, length] of [
    [at, at, -1],
    [NaN, at, 1],
    [at, -1, 1],
    [sizeBytes - 3, at, 4],
    [at, Infinity, 0],
    [2 ** 63, at, 4],
  ] as const) {
    plan.source[0] = source;
    plan.target[0] = target;
    plan.length[0] = length;
    plan.count = 1;
    assert.throws(() => plan.run(), { code: 'ERR_VRING_ASSERTION' });
  }
  plan.count = 4;
  assert.throws(() => plan.run(), { code: 'ERR_VRING_ASSERTION' }, 'more than its capacity');
  releaseRegion(region);
});

test('gathered writes and reads', () => {
  const { bytes } = arena();
  const at = nextPlace();
  const region = mapPrivateAt(at, 65536);
  using file = createMemfd('file', 0);
  bytes.set([1, 2, 3, 4, 5, 6, 7, 8], at);
  const offsets = Float64Array.of(0, at + 4, at);
  const lengths = Int32Array.of(9, 4, 2);
  assert.equal(writevArena(file.number, offsets, lengths, 1, 2), 6);
  assert.equal(writevArena(file.number, offsets, lengths, 1, 3), -22);
  assert.equal(writevArena(file.number, offsets, Int32Array.of(0, -1, 2), 1, 2), -14);
  assert.equal(writevArena(-1, offsets, lengths, 1, 2), -9);
  using again = createMemfd('dummy', 0);
  assert.equal(readArena(again.number, at, 16), 0);
  assert.equal(readArena(file.number, arena().sizeBytes - 4, 16), -14);
  const reread = readFileSync(`/proc/self/fd/${file.number}`);
  assert.deepEqual([...reread], [5, 6, 7, 8, 1, 2]);
  releaseRegion(region);
});

test('faults elsewhere go to whoever handled them before', () => {
  // V8 turns wasm accesses out of bounds into RuntimeErrors, by a SIGSEGV handler of its own.
  const wasm = `
    const code = new Uint8Array([0,97,115,109,1,0,0,0,1,6,1,96,1,127,1,127,3,2,1,0,5,3,1,0,1,
      7,5,1,1,102,0,0,10,9,1,7,0,32,0,40,2,0,11]);
    const { f } = new WebAssembly.Instance(new WebAssembly.Module(code)).exports;
    let text = 'none';
    for (let i = 0; i < 1e5; i++) f(8);
    try { f(0x7fffffff); } catch (error) { text = error.constructor.name; }
    console.log(text);`;
  assert.equal(childEnds(wasm).text, 'RuntimeError\n');
  for (const signal of ['SIGBUS', 'SIGSEGV']) {
    const ended = childEnds(`process.kill(process.pid, '${signal}'); setTimeout(() => {}, 3000);`);
    assert.equal(ended.signal, signal);
  }
});

test('a thread that alone loaded the addon may end', () => {
  const worker = `
    import * as s from ${JSON.stringify(indexUrl)};
    const fd = s.createMemfd('x', 4096);
    s.mapRegionAt(2 ** 34, 4096, fd.number, 0);
    s.truncate(fd.number, 0);
    if (s.arena().bytes[2 ** 34] !== 0) throw new Error('no zero');`;
  const url = `data:text/javascript,${encodeURIComponent(worker)}`;
  const source = `
    const { Worker } = require('node:worker_threads');
    const run = (n) => {
      const w = new Worker(new URL(${JSON.stringify(url)}));
      w.on('error', (e) => { console.log(e); process.exit(1); });
      w.on('exit', () => { if (n > 0) return run(n - 1); process.kill(process.pid, 'SIGSEGV');
        setTimeout(() => {}, 3000); });
    };
    run(0);`;
  const child = spawnSync(process.execPath, ['-e', source], { encoding: 'utf8' });
  assert.equal(child.signal, 'SIGSEGV', child.stdout + child.stderr);
});
