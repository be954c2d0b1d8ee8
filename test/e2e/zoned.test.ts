/**
 * A zoned disk from our target to our guest, as nothing in Debian 12 drives one: QEMU 7.2 does not
 * let the feature through, and Linux knows it from 6.3 on. On the command line, and while the target
 * is killed: no write or append is lost, none is done twice, and the pointers say so.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { connectBlkGuest, runZoneWorkload, ZonedDisk } from '../../src/guest/index.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch } from '../peers/scratch.ts';
import { Supervisor } from '../peers/supervisor.ts';
import { vring } from '../peers/switch.ts';
import { killAgainAndAgain } from '../peers/target-kills.ts';
import { VIRTIO_BLK_F_ZONED } from '../../src/wire/virtio-blk.ts';

const MIB = 2 ** 20;
const ZONES = '1M,conventional=1,open=3,active=6';

/** In memory: what is looked at is not the machine's disk. */
function diskIn(scratch: Scratch): string {
  const folder = mkdtempSync('/dev/shm/vring-');
  scratch.own({ close: () => rmSync(folder, { recursive: true }) });
  return createDiskFile(join(folder, 'disk.img'), 18 * MIB);
}

test('the command line: zones, appends, resets, and what is refused', async () => {
  await using scratch = new Scratch();
  const [socket, file] = [scratch.path('s'), diskIn(scratch)];
  const server = scratch.own(
    await BlkServer.start('--socket', socket, '--file', file, '--zones', ZONES),
  );
  const piece = scratch.path('piece');
  writeFileSync(piece, Buffer.alloc(65536 + 4096, 'z'));
  const guest = (...words: string[]) => vring('guest', 'blk', '--socket', socket, ...words);
  const json = async (...words: string[]) => JSON.parse(await guest('--json', ...words));
  deepEqual(await json('append', '--offset', '1M', '--file', piece), {
    zone: MIB,
    bytes: 69632,
    places: [MIB, MIB + 65536],
  });
  const { zoned, close } = await connected(socket);
  await zoned.act('open', 2 * MIB);
  await zoned.act('finish', 3 * MIB);
  await rejects(zoned.act('reset', 0), { code: 'ERR_VRING_BLK_ZONE_INVALID' });
  await close();
  const { zones, ...shape } = await json('zones', '--count', '5');
  deepEqual(shape, {
    zoneBytes: MIB,
    maxOpen: 3,
    maxActive: 6,
    maxAppendBytes: MIB,
    granularityBytes: 4096,
  });
  deepEqual(
    zones.map(({ pointer, condition }: { pointer: number | null; condition: string }) => {
      return [condition, pointer];
    }),
    [
      ['conventional', null],
      ['implicitly open', MIB + 69632],
      ['explicitly open', 2 * MIB],
      ['full', null],
      ['empty', 4 * MIB],
    ],
  );
  match(await guest('zones'), /1048576 {2}implicitly open {2}capacity 1048576 {2}pointer 1118208/);
  const unaware = connectBlkGuest({ socket, features: { on: [], off: [VIRTIO_BLK_F_ZONED] } });
  await rejects(unaware, /refused the negotiated features/);
  const report = await json('verify-zones', '--seconds', '1');
  deepEqual(report.wrong, []);
  ok(report.writes > 0 && report.appends > 0 && report.checked > 0);
  const { counters } = (await server.end()) as { counters: Record<string, number> };
  equal(counters['errors'], 0);
  equal(counters['rejected'], 1, 'what the driver did wrong is no error of the medium');
});

async function connected(socket: string) {
  const guest = await connectBlkGuest({ socket });
  return { zoned: new ZonedDisk(guest), close: () => guest.close() };
}

for (const ring of ['split', 'packed']) {
  test(`${ring}: kill -9 under writes and appends`, async () => {
    await using scratch = new Scratch();
    const [socket, file] = [scratch.path('s'), diskIn(scratch)];
    const words = ['--socket', socket, '--file', file, '--queues', '2', '--zones', ZONES];
    const target = scratch.own(await Supervisor.start('serve', 'blk', '--json', ...words));
    const guest = scratch.own(
      await connectBlkGuest({ socket, packed: ring === 'packed', queues: 2, reconnect: true }),
    );
    const stop = new AbortController();
    const running = runZoneWorkload({ guest, seconds: 600, depth: 24, signal: stop.signal });
    const isBack = (): boolean => target.has('connected') && !guest.searching;
    const kills = killAgainAndAgain([target], isBack, { times: 2, random: Math.random, early: 0 });
    await Promise.race([kills, running]);
    stop.abort();
    const report = await running;
    deepEqual(report.wrong, [], `seed ${report.seed}`);
    ok(report.reconnects >= 2 && report.checked > 0, JSON.stringify(report));
    const zones = await new ZonedDisk(guest).report();
    equal(zones.length, 17);
  });
}
