import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { openNbdLayer } from '../../storage/nbd/index.ts';
import { TargetFixture } from './target-fixture.ts';

test('an export that cannot be had leaves the one before', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const socket = fixture.path('nbd');
  const { export: uri } = await fixture.add('a', [fixture.file('a.img')], { export: { socket } });

  writeFileSync(fixture.path('taken'), 'no socket');
  const other = { socket: fixture.path('taken'), readOnly: true };
  await assert.rejects(target.exportDisk('a', other), /taken/);
  assert.equal((await target.disk('a')).export, uri);
  await (await openNbdLayer({ uri: uri! })).close();

  // The same socket: the old one has to end first.
  const { export: again } = await target.exportDisk('a', { socket, readOnly: true });
  const client = await openNbdLayer({ uri: again! });
  assert.equal(client.readOnly, true);
  await client.close();

  const elsewhere = { socket: fixture.path('nbd2'), readOnly: false };
  const { export: moved } = await target.exportDisk('a', elsewhere);
  await assert.rejects(openNbdLayer({ uri: again! }));
  await (await openNbdLayer({ uri: moved! })).close();
  assert.equal((await target.exportDisk('a', null)).export, null);
});
