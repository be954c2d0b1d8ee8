/** A server elsewhere that falls silent: what the guest gets, and what people are told. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeServer } from '../../../test/peers/object-server.ts';
import { BlkDisk, connectBlkGuest } from '../../guest/index.ts';
import { TargetFixture } from './target-fixture.ts';

test('an object of S3 whose server answers no more', async () => {
  await using fixture = new TargetFixture();
  const server = await FakeServer.start(Buffer.alloc(4 << 20, 7));
  const place = { endpoint: server.origin, region: 'r', bucket: 'images', key: 'vm.img' };
  await fixture.add('a', [{ s3: { ...place, timeoutSeconds: 0.5 } }], { readOnly: true });
  const guest = await connectBlkGuest({ socket: fixture.path('a') });
  const disk = new BlkDisk(guest);
  assert.equal((await disk.read(0, 512))[0], 7);

  server.intercept = () => true; // and nothing comes
  await assert.rejects(disk.read(2 << 20, 4096), { code: 'ERR_VRING_BLK_IOERR' });
  const { errors, lastError } = await fixture.target.disk('a');
  assert.deepEqual([errors, lastError], [1, { op: 'read', at: 2 << 20, errno: 'ETIMEDOUT' }]);
  const told = fixture.events.find(({ kind }) => kind === 'problem');
  assert.match(
    told!.message,
    /\/images\/vm\.img: read of 4096 bytes at 2097152 failed with ETIMEDOUT/,
  );
  assert.equal(told!.disk, 'a');

  server.intercept = null;
  assert.equal((await disk.read(2 << 20, 4096))[4095], 7, 'and it goes on');
  await guest.close();
  server.close();
});
