import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { setTimeout as sleep } from 'node:timers/promises';
import { openFdCount } from '../../sys/index.ts';
import { openStack } from '../stack/open-stack.ts';
import {
  carryOut,
  fileLayer,
  qemuCheck,
  qemuImg,
  randomOf,
  randomRequest,
  readAll,
  temporaryFolder,
} from '../qcow2/testing.ts';
import { type CommitFacts, OverlayLayer, type SnapshotFacts } from './overlay-layer.ts';

const SIZE = 4 * 2 ** 20;

type Place = { readonly folder: string; readonly basePath: string; readonly base: Buffer };

function makeBase(t: TestContext): Place {
  const home = temporaryFolder(t);
  const basePath = join(home, 'base.img');
  const base = Buffer.alloc(SIZE);
  for (let at = 0; at < SIZE; at += 4096) base.fill(1 + ((at / 4096) % 250), at, at + 2048);
  writeFileSync(basePath, base);
  return { folder: join(home, 'overlay'), basePath, base };
}

function openOverlay({ folder, basePath }: Place, readOnly = false): Promise<OverlayLayer> {
  return OverlayLayer.open({ folder, base: fileLayer(basePath, true), basePath, readOnly });
}

async function work(layer: OverlayLayer, model: Buffer, seed: number, count = 20): Promise<void> {
  const random = randomOf(seed);
  for (let i = 0; i < count; i++)
    await carryOut(layer, model, randomRequest(random, SIZE, 2 ** 17));
}

async function same(layer: OverlayLayer, model: Buffer): Promise<void> {
  assert.ok((await readAll(layer)).equals(model));
}

/** QEMU finds the same by following names from the top. */
function qemuSame({ folder }: Place, model: Buffer): void {
  const chain = JSON.parse(readFileSync(join(folder, 'chain.json'), 'utf8'));
  for (const { file } of chain.files) {
    const { corruptions, leaks, text } = qemuCheck(join(folder, file));
    assert.equal(corruptions + leaks, 0, text);
  }
  const top = join(folder, chain.files.at(-1).file);
  writeFileSync(`${folder}.model`, model);
  qemuImg('compare', '-f', 'qcow2', '-F', 'raw', top, `${folder}.model`);
}

test('changes go to the folder, the base stays', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const place = makeBase(t);
  const fds = openFdCount();
  const model = Buffer.from(place.base);
  let layer = await openOverlay(place);
  await same(layer, model);
  await work(layer, model, 1);
  await same(layer, model);
  await layer.close();
  assert.equal(openFdCount(), fds);
  qemuSame(place, model);
  assert.ok(readFileSync(place.basePath).equals(place.base));
  layer = await openOverlay(place, true);
  await same(layer, model);
  await assert.rejects(layer.write(0, Buffer.alloc(512), false), { errno: 30 });
  await assert.rejects(layer.control('snapshot', { name: 'x' }), { errno: 30 });
  await layer.close();
});

test('one process has a folder, or several that read', async (t) => {
  const place = makeBase(t);
  const layer = await openOverlay(place);
  const inUse = { code: 'ERR_VRING_DISK_LOCKED' };
  await assert.rejects(openOverlay(place), inUse);
  await assert.rejects(openOverlay(place, true), inUse);
  await layer.write(0, Buffer.alloc(512, 1), false);
  await layer.close();
  const readers = [await openOverlay(place, true), await openOverlay(place, true)];
  await assert.rejects(openOverlay(place), inUse);
  for (const reader of readers) await reader.close();
  await (await openOverlay(place)).close();
});

test('snapshots are kept, listed, and gone back to', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const place = makeBase(t);
  const model = Buffer.from(place.base);
  let layer = await openOverlay(place);
  const states = new Map<string, Buffer>();
  for (const [i, name] of ['one', 'two', 'three'].entries()) {
    await work(layer, model, i);
    // While requests are under way.
    const writes = Array.from({ length: 20 }, (_, n) =>
      layer.write(n * 8192, Buffer.alloc(4096, i + 5), false),
    );
    await Promise.all([...writes, layer.flush()]);
    for (let n = 0; n < 20; n++) model.fill(i + 5, n * 8192, n * 8192 + 4096);
    await layer.control('snapshot', { name });
    states.set(name, Buffer.from(model));
  }
  await work(layer, model, 9);
  await same(layer, model);
  const listed = (await layer.control('snapshots', undefined)) as SnapshotFacts[];
  assert.deepEqual(
    listed.map(({ name, sizeBytes }) => [name, sizeBytes]),
    [
      ['one', SIZE],
      ['two', SIZE],
      ['three', SIZE],
    ],
  );
  assert.ok(listed.every(({ fileBytes }) => fileBytes > 65536));
  await assert.rejects(layer.control('snapshot', { name: 'two' }), /there is a snapshot two/);
  await assert.rejects(layer.control('snapshot', { name: 'a b' }), /no name of a snapshot/);
  await assert.rejects(layer.control('rollback', { name: 'four' }), /there are one, two, three/);

  await layer.control('rollback', undefined);
  await same(layer, states.get('three')!);
  await layer.close();
  layer = await openOverlay(place);
  await same(layer, states.get('three')!);
  await layer.control('rollback', { name: 'one' });
  await same(layer, states.get('one')!);
  const now = Buffer.from(states.get('one')!);
  await work(layer, now, 10);
  await layer.close();
  qemuSame(place, now);
  assert.equal(readdirSync(place.folder).length, 4, 'what was dropped is removed');
});

test('a commit goes on below a running disk, into a snapshot and into the base', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const place = makeBase(t);
  const model = Buffer.from(place.base);
  let layer = await openOverlay(place);
  await work(layer, model, 1);
  await layer.control('snapshot', { name: 'one' });
  const one = Buffer.from(model);
  await work(layer, model, 2);
  await layer.control('commit', undefined);
  await work(layer, model, 3, 15); // meanwhile
  await layer.settled();
  await same(layer, model);
  assert.deepEqual(await layer.control('snapshots', undefined), []);
  await layer.close();
  qemuSame(place, model);
  assert.notDeepEqual(one, model);

  layer = await openOverlay(place);
  const committed = Buffer.from(model);
  const facts = (await layer.control('commit', { to: 'base' })) as CommitFacts;
  assert.equal(facts.state, 'running');
  await work(layer, model, 4, 10);
  await layer.settled();
  assert.equal(((await layer.control('commit-status', null)) as CommitFacts).state, 'none');
  await same(layer, model);
  assert.ok(readFileSync(place.basePath).equals(committed), 'the base holds what was committed');
  assert.equal(layer.counters()['overlay_files'], 1);
  await layer.close();
  qemuSame(place, model);
  layer = await openOverlay(place);
  await same(layer, model);
  await layer.close();
});

test('a snapshot in the middle is deleted, and the others stay', async (t) => {
  const place = makeBase(t);
  const model = Buffer.from(place.base);
  const layer = await openOverlay(place);
  const states = new Map<string, Buffer>();
  for (const [i, name] of ['one', 'two', 'three'].entries()) {
    await work(layer, model, i);
    await layer.control('snapshot', { name });
    states.set(name, Buffer.from(model));
  }
  await work(layer, model, 7);
  await layer.control('delete', { name: 'two' });
  await assert.rejects(layer.control('rollback', { name: 'one' }), /a commit is under way/);
  await layer.settled();
  await same(layer, model);
  const names = (): Promise<string[]> =>
    (layer.control('snapshots', null) as Promise<SnapshotFacts[]>).then((all) =>
      all.map(({ name }) => name),
    );
  assert.deepEqual(await names(), ['one', 'three']);
  await layer.control('rollback', { name: 'three' });
  await same(layer, states.get('three')!);
  await layer.control('rollback', { name: 'one' });
  await same(layer, states.get('one')!);
  await layer.close();
});

test('a base that others read is not committed to, and is theirs again afterwards', async (t) => {
  const { folder, basePath } = makeBase(t);
  const open = (name: string): ReturnType<typeof openStack> =>
    openStack({
      stack: [
        { kind: 'overlay', folder: `${folder}-${name}` },
        { kind: 'file', path: basePath },
      ],
    });
  const [mine, other] = [await open('mine'), await open('other')];
  const commit = (): Promise<unknown> => mine.control('commit', { to: 'base' });
  const facts = async (): Promise<CommitFacts> =>
    (await mine.control('commit-status', null)) as CommitFacts;
  const inUse = { code: 'ERR_VRING_DISK_LOCKED', message: /base\.img is in use/ };
  await assert.rejects(commit(), inUse);
  assert.equal((await facts()).state, 'none', 'nothing has begun');
  await assert.rejects(commit(), inUse);
  await other.close();
  await commit();
  for (let tries = 0; (await facts()).state !== 'none'; tries++) {
    assert.ok(tries < 200);
    await sleep(20);
  }
  await (await open('other')).close();
  await mine.close();
});

test('a larger overlay grows its base when it is committed', async (t) => {
  const place = makeBase(t);
  const layer = await openOverlay(place);
  await layer.resize(2 * SIZE);
  await layer.write(2 * SIZE - 4096, Buffer.alloc(4096, 8), true);
  await layer.control('commit', null);
  await layer.settled();
  const model = Buffer.alloc(2 * SIZE);
  place.base.copy(model);
  model.fill(8, 2 * SIZE - 4096);
  assert.ok((await readAll(layer)).equals(model));
  await layer.close();
  assert.ok(readFileSync(place.basePath).equals(model));
});

test('a folder that is no overlay is refused by what it holds', async (t) => {
  const place = makeBase(t);
  await (await openOverlay(place)).close();
  const chain = join(place.folder, 'chain.json');
  const good = readFileSync(chain, 'utf8');
  const cases: [(chain: Record<string, unknown>) => void, RegExp][] = [
    [(c) => (c['version'] = 2), /has version 2, expected 1/],
    [(c) => (c['next'] = 'x'), /next is "x"/],
    [(c) => (c['files'] = []), /files are no list of 1 to 64/],
    [(c) => (c['files'] = [{ file: '../../etc/passwd' }]), /files\[0\]\.file is "\.\.\/\.\./],
    [(c) => (c['files'] = [{ file: '000001.qcow2', snapshot: 7 }]), /files\[0\] has no snapshot/],
    [(c) => (c['files'] = [{ file: '000009.qcow2', snapshot: null, createdAtMs: 1 }]), /ENOENT/],
    [(c) => (c['merging'] = '000007.qcow2'), /merging is "000007/],
    [(c) => (c['merging'] = '000001.qcow2'), /expected a file below the last/],
  ];
  for (const [change, message] of cases) {
    const bad = JSON.parse(good);
    change(bad);
    writeFileSync(chain, JSON.stringify(bad));
    await assert.rejects(openOverlay(place, true), message);
  }
  writeFileSync(chain, '{');
  await assert.rejects(openOverlay(place), /chain\.json is no JSON/);
  const other = { ...place, folder: temporaryFolder(t) };
  writeFileSync(join(other.folder, 'notes'), '');
  await assert.rejects(openOverlay(other), /holds notes and no chain\.json/);
});

test('without its chain, a folder that holds data is left alone', async (t) => {
  const place = makeBase(t);
  const layer = await openOverlay(place);
  await layer.write(0, Buffer.alloc(512, 1), false);
  await layer.close();
  const first = join(place.folder, '000001.qcow2');
  const bytes = readFileSync(first);
  const other = { ...place, folder: temporaryFolder(t) };
  writeFileSync(join(other.folder, '000001.qcow2'), bytes);
  await assert.rejects(openOverlay(other), /with data in it, and chain\.json is missing/);
  writeFileSync(join(other.folder, '000001.qcow2'), Buffer.alloc(8192));
  await (await openOverlay(other)).close();
});
