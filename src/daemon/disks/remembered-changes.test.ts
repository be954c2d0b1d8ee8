/** What is changed of a disk of the API, and the file that remembers it: both or neither. */
import assert from 'node:assert/strict';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { TargetFixture } from './target-fixture.ts';

const UNWRITTEN = {
  code: 'ERR_VRING_DISK_STATE',
  message: /cannot be written.*nothing was changed/,
};

test('a change that cannot be remembered is not made', async () => {
  await using fixture = new TargetFixture('state/disks.json');
  const { target } = fixture;
  const remembered = () =>
    JSON.parse(readFileSync(fixture.path('state/disks.json'), 'utf8')).disks[0];
  await fixture.add('a', [fixture.file('a.img')], { limits: { iops: 5 } });

  renameSync(fixture.path('state'), fixture.path('away'));
  writeFileSync(fixture.path('state'), 'no folder');
  await assert.rejects(target.updateDisk('a', { limits: { iops: 7 } }), UNWRITTEN);
  await assert.rejects(target.updateDisk('a', { limits: null, sizeBytes: 2 << 20 }), UNWRITTEN);
  const exported = { socket: fixture.path('nbd'), readOnly: true };
  await assert.rejects(target.exportDisk('a', exported), UNWRITTEN);
  const { limits, export: uri, sizeBytes } = await target.disk('a');
  assert.deepEqual([limits, uri, sizeBytes], [{ iops: 5 }, null, 1 << 20]);

  rmSync(fixture.path('state'));
  renameSync(fixture.path('away'), fixture.path('state'));
  assert.deepEqual(remembered().limits, { iops: 5 });
  await Promise.all([
    target.updateDisk('a', { limits: { iops: 7 } }),
    target.exportDisk('a', exported),
    target.updateDisk('a', { sizeBytes: 2 << 20 }),
  ]);
  assert.deepEqual(
    [remembered().limits, remembered().export.socket],
    [{ iops: 7 }, exported.socket],
  );
});

test('a change that fails is not remembered', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const remembered = () => JSON.parse(readFileSync(fixture.path('state.json'), 'utf8')).disks[0];
  await fixture.add('a', [fixture.file('a.img')]);
  const before = remembered();
  writeFileSync(fixture.path('taken'), 'no socket');
  const taken = { socket: fixture.path('taken'), readOnly: true };
  await assert.rejects(target.exportDisk('a', taken), /taken/);
  const smaller = { limits: { iops: 1 }, sizeBytes: 4096 };
  await assert.rejects(target.updateDisk('a', smaller), /say shrink as well/);
  assert.deepEqual(remembered(), before);
  assert.equal((await target.disk('a')).limits, null);
});
