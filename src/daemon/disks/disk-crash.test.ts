/** A storage thread that ends by an error: what its own disk does then, and the others do not. */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { BlkDisk, connectBlkGuest } from '../../guest/index.ts';
import { openNbdLayer } from '../../storage/nbd/index.ts';
import type { FaultRule } from '../../storage/index.ts';
import { TargetFixture } from './target-fixture.ts';

const CRASH: FaultRule[] = [{ op: 'read', at: 4096, sizeBytes: 512, times: 1, action: 'crash' }];
/** The used ring or the end of the session, whichever the driver sees first. */
const FAILS = { code: /^ERR_VRING_(BLK_IOERR|GUEST_BACKEND_GONE)$/ };

/** Descriptors of this process that lead into a folder. */
function openBelow(folder: string): string[] {
  const found = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return target.startsWith(folder) ? [target] : []; // not sockets, whose names are none
    } catch {
      return []; // the one that reads the folder
    }
  });
  return found.toSorted();
}

test('what is out fails, the disk fails with the reason, and works again by itself', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const overlay = { overlay: { folder: fixture.path('changes') } };
  const layers = [{ fault: {} }, overlay, fixture.file('a.img')];
  await fixture.add('bad', layers);
  await fixture.add('good', [{ fault: {} }, fixture.file('b.img')]);
  const sick = await connectBlkGuest({ socket: fixture.path('bad') });
  const well = await connectBlkGuest({ socket: fixture.path('good') });
  const [bad, good] = [new BlkDisk(sick), new BlkDisk(well)];
  await bad.write(8192, new Uint8Array(512).fill(7));
  const files = openBelow(fixture.folder);

  await target.setFaults('bad', [
    { op: 'read', at: 0, sizeBytes: 512, action: 'delay', ms: 60_000 },
    ...CRASH,
  ]);
  const out = assert.rejects(bad.read(0, 512), FAILS);
  await assert.rejects(bad.read(4096, 512), FAILS);
  await out;
  const failed = await fixture.state('bad', 'failed');
  assert.match(
    failed.reason!.message,
    /thread of the disk has ended: .*read at byte 4096 ends the thr/,
  );
  await good.write(0, new Uint8Array(512).fill(3));
  await sick.close();

  const again = await fixture.state('bad', 'listening'); // its locks were let go
  assert.equal(again.reason, null);
  assert.deepEqual(openBelow(fixture.folder), files, 'what the thread had open was closed');
  const kinds = fixture.events.filter(({ disk }) => disk === 'bad').map(({ kind }) => kind);
  assert.ok(kinds.includes('disk-failed') && kinds.includes('disk-recovered'), kinds.join());
  const next = await connectBlkGuest({ socket: fixture.path('bad') });
  assert.equal((await new BlkDisk(next).read(8192, 512))[0], 7, 'what had completed is there');
  assert.equal((await good.read(0, 512))[0], 3);
  const others = fixture.events.filter(
    ({ disk, kind }) => disk === 'good' && kind !== 'disk-added',
  );
  assert.deepEqual(
    others.map(({ kind }) => kind),
    ['session-started', 'disk-up'],
  );
  await next.close();
  await well.close();
});

test('an image that crashes while it is opened is refused, and leaves nothing open', async () => {
  await using fixture = new TargetFixture();
  const rules = [{ op: 'read', action: 'crash' }];
  const layers = ['qcow2', { fault: { rules } }, fixture.file('a.img')];
  const refusal = { code: 'ERR_VRING_DISK_OPEN', message: /ends the thread by rule/ };
  await assert.rejects(fixture.add('a', layers), refusal);
  assert.deepEqual(openBelow(fixture.folder), []);
});

test('an export whose thread ends begins again; the guest notices nothing', async (t) => {
  await using fixture = new TargetFixture();
  const { unref } = Worker.prototype;
  const threads: Worker[] = [];
  t.mock.method(Worker.prototype, 'unref', function (this: Worker) {
    threads.push(this);
    unref.call(this);
  });
  const socket = fixture.path('nbd');
  const { export: uri } = await fixture.add('a', [fixture.file('a.img')], { export: { socket } });
  const guest = await connectBlkGuest({ socket: fixture.path('a') });
  const disk = new BlkDisk(guest);
  await disk.write(0, new Uint8Array(512).fill(9));
  await threads.at(-1)!.terminate();
  await disk.read(0, 512);
  for (const end = performance.now() + 10_000; ; await sleep(20)) {
    if ((await fixture.target.disk('a')).export === uri) break;
    assert.ok(performance.now() < end, 'no export after 10 s');
  }
  const client = await openNbdLayer({ uri: uri! });
  const bytes = new Uint8Array(512);
  await client.read(0, bytes);
  assert.equal(bytes[0], 9);
  await client.close();
  await guest.close();
});
