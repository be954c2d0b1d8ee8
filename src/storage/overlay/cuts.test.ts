/** Power cuts and kills at every step of what changes an overlay's chain. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileLayer, readAll } from '../qcow2/testing.ts';
import { FolderCuts, type FolderState } from './folder-cuts.ts';
import { OverlayLayer } from './overlay-layer.ts';

const DISK_BYTES = 3 * 65536;

function open(folder: string, basePath: string): Promise<OverlayLayer> {
  return OverlayLayer.open({ folder, base: fileLayer(basePath, true), basePath, readOnly: false });
}

type Prepared = { home: string; layer: OverlayLayer; before: Buffer; after: Buffer };

/** Content `before`, snapshot `s1`, content `after`; all of it flushed. */
async function prepare(t: TestContext): Promise<Prepared> {
  const home = mkdtempSync('/dev/shm/vring-cuts-'); // where to sync costs nothing
  t.after(() => rmSync(home, { recursive: true, force: true }));
  mkdirSync(join(home, 'disk'));
  writeFileSync(join(home, 'disk', 'base'), Buffer.alloc(DISK_BYTES, 1));
  const layer = await open(join(home, 'disk', 'vm0'), join(home, 'disk', 'base'));
  await layer.write(0, Buffer.alloc(65536, 2), false);
  await layer.flush();
  const before = await readAll(layer);
  await layer.control('snapshot', { name: 's1' });
  await layer.write(65536 - 512, Buffer.alloc(1024, 3), false);
  await layer.flush();
  return { home, layer, before, after: await readAll(layer) };
}

/** Opens what a cut has left, lets it go on, and returns the content and its snapshots. */
async function revive(home: string, { files }: FolderState) {
  const folder = join(home, 'revived');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, 'vm0'), { recursive: true });
  for (const [name, bytes] of files) writeFileSync(join(folder, 'vm0', name), bytes);
  const layer = await open(join(folder, 'vm0'), join(folder, 'base'));
  const atOnce = await readAll(layer);
  await layer.settled();
  const content = await readAll(layer);
  assert.ok(atOnce.equals(content), 'what goes on behind it changes nothing');
  const { problem } = (await layer.control('commit-status', null)) as { problem: string | null };
  assert.equal(problem, null);
  const snapshots = (await layer.control('snapshots', null)) as { name: string }[];
  await layer.write(0, Buffer.alloc(512, 9), true); // and it can be used
  await layer.close();
  return { content, names: snapshots.map(({ name }) => name) };
}

const OPERATIONS: readonly (readonly [
  name: string,
  payload: unknown,
  /** Snapshots that there may be then. */
  names: readonly string[],
  /** Whether the content before the snapshot is possible. */
  goesBack: boolean,
])[] = [
  ['snapshot', { name: 's2' }, ['s1', 's1,s2'], false],
  ['commit', null, ['s1', ''], false],
  ['commit', { to: 'base' }, ['s1', ''], false],
  ['delete', { name: 's1' }, ['s1', ''], false],
  ['rollback', { name: 's1' }, ['s1'], true],
];

for (const [operation, payload, names, goesBack] of OPERATIONS) {
  test(`${operation} ${JSON.stringify(payload)}, cut at every step`, async (t) => {
    const { home, layer, before, after } = await prepare(t);
    const cuts = new FolderCuts(join(home, 'disk', 'vm0'), join(home, 'disk', 'base'));
    await cuts.begin();
    try {
      await layer.control(operation, payload);
      await layer.settled();
    } finally {
      cuts.end();
    }
    const done = await readAll(layer);
    await layer.close();
    assert.ok(cuts.steps >= 5 && cuts.states.length >= 5, `${cuts.steps} steps`);
    const found = new Set<string>();
    for (const state of cuts.states) {
      const { content, names: left } = await revive(home, state).catch((error: Error) =>
        assert.fail(`${state.how}: ${error.message}`),
      );
      const isRight = content.equals(after) || (goesBack && content.equals(before));
      assert.ok(isRight, `${state.how}: another content`);
      assert.ok(names.includes(left.join()), `${state.how}: snapshots ${left.join()}`);
      found.add(`${content.equals(after)} ${left.join()}`);
    }
    assert.ok(done.equals(goesBack ? before : after));
    t.diagnostic(`${cuts.steps} steps, ${cuts.states.length} states, ${[...found].join('; ')}`);
  });
}
