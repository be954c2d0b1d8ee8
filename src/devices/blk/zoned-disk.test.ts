/** Zone requests over both ring formats, as chains: framing, short buffers, and a driver unaware. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { openStack, parseStack } from '../../storage/index.ts';
import * as blk from '../../wire/virtio-blk.ts';
import { featureSet, VIRTIO_F_VERSION_1 } from '../../wire/virtio.ts';
import { DiskFixture } from './disk-fixture.ts';

const ZONE = 128n; // sectors
const NONE = new Uint8Array(0);
const BLOCK = new Uint8Array(4096).fill(7);
const FAR = (1n << 64n) - 1n;
const { VIRTIO_BLK_S_OK: OK, VIRTIO_BLK_S_IOERR: IOERR, VIRTIO_BLK_S_UNSUPP: UNSUPP } = blk;
const { VIRTIO_BLK_S_ZONE_INVALID_CMD: INVALID, VIRTIO_BLK_S_ZONE_UNALIGNED_WP: UNALIGNED } = blk;

/** A disk whose requests complete on a storage thread. */
async function zonedDisk(packed: boolean, features?: bigint) {
  const stack = parseStack(['zoned:64K,conventional=1,open=1,active=2', 'memory:2M'], 'layers');
  const image = await openStack({ stack });
  const { zones } = image;
  const device = { zones: zones!, packed: true };
  const fixture = new DiskFixture({
    image,
    packed,
    device,
    ...(features === undefined ? {} : { features }),
  });
  const ask = async (type: number, sector: bigint, out: Uint8Array, inBytes: number) => {
    const queue = fixture.queues[0]!;
    const data = { gpa: queue.alloc(inBytes), len: inBytes };
    const status = queue.status();
    const readable = [queue.header(type, sector), ...(out.length > 0 ? [queue.put(out)] : [])];
    const id = queue.add(readable, inBytes > 0 ? [data, status] : [status], true);
    for (;;) {
      for (const token of fixture.watched.values()) fixture.plane.ready(token, performance.now());
      fixture.poll();
      const len = queue.reap().get(id);
      if (len !== undefined) {
        return { status: queue.read(status.gpa, 1)[0]!, len, data: queue.read(data.gpa, inBytes) };
      }
      await sleep(1);
    }
  };
  return { fixture, ask };
}

for (const packed of [false, true]) {
  test(`${packed ? 'packed' : 'split'}: zone requests, right and wrong`, async () => {
    const { fixture, ask } = await zonedDisk(packed);
    const T = blk;
    const cases: [string, number, bigint, Uint8Array, number, number][] = [
      ['append', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, BLOCK, 8, OK],
      ['write at the pointer', T.VIRTIO_BLK_T_OUT, ZONE + 8n, BLOCK, 0, OK],
      ['write behind it', T.VIRTIO_BLK_T_OUT, ZONE + 8n, BLOCK, 0, UNALIGNED],
      ['append without room', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, BLOCK, 7, IOERR],
      ['append with too much room', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, BLOCK, 16, IOERR],
      ['append of nothing', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, NONE, 8, IOERR],
      ['append of half a sector', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, new Uint8Array(100), 8, IOERR],
      ['append behind the disk', T.VIRTIO_BLK_T_ZONE_APPEND, FAR, BLOCK, 8, INVALID],
      ['append of too much', T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, new Uint8Array(131072), 8, INVALID],
      ['report into a byte', T.VIRTIO_BLK_T_ZONE_REPORT, 0n, NONE, 1, IOERR],
      ['report into 63 bytes', T.VIRTIO_BLK_T_ZONE_REPORT, 0n, NONE, 63, IOERR],
      ['report with data', T.VIRTIO_BLK_T_ZONE_REPORT, 0n, BLOCK, 64, IOERR],
      ['report behind the disk', T.VIRTIO_BLK_T_ZONE_REPORT, FAR, NONE, 128, INVALID],
      ['open with data', T.VIRTIO_BLK_T_ZONE_OPEN, ZONE, BLOCK, 0, IOERR],
      ['open with room', T.VIRTIO_BLK_T_ZONE_OPEN, ZONE, NONE, 8, IOERR],
      ['open behind the disk', T.VIRTIO_BLK_T_ZONE_OPEN, FAR, NONE, 0, INVALID],
      ['open', T.VIRTIO_BLK_T_ZONE_OPEN, ZONE, NONE, 0, OK],
      ['one more is open', T.VIRTIO_BLK_T_ZONE_OPEN, 2n * ZONE, NONE, 0, 5],
      ['close', T.VIRTIO_BLK_T_ZONE_CLOSE, ZONE, NONE, 0, OK],
      ['write', T.VIRTIO_BLK_T_OUT, 2n * ZONE, BLOCK, 0, OK],
      ['one more is active', T.VIRTIO_BLK_T_OUT, 3n * ZONE, BLOCK, 0, 6],
      ['read over two zones', T.VIRTIO_BLK_T_IN, 2n * ZONE - 1n, NONE, 1024, INVALID],
      ['finish', T.VIRTIO_BLK_T_ZONE_FINISH, ZONE, NONE, 0, OK],
      ['reset of all', T.VIRTIO_BLK_T_ZONE_RESET_ALL, 0n, NONE, 0, OK],
      ['discard', T.VIRTIO_BLK_T_DISCARD, 0n, new Uint8Array(16), 0, UNSUPP],
      ['type between them', 17, ZONE, NONE, 0, UNSUPP],
    ];
    for (const [what, type, sector, out, inBytes, status] of cases) {
      assert.equal((await ask(type, sector, out, inBytes)).status, status, what);
    }
    const report = await ask(T.VIRTIO_BLK_T_ZONE_REPORT, ZONE + 5n, NONE, 64 * 3 + 63);
    assert.equal(T.BlkZoneReport.decode(report.data).nrZones, 2n, 'those that fit');
    const first = T.BlkZoneDescriptor.decode(report.data.slice(64));
    assert.deepEqual([first.zStart, first.zWp, first.zState], [ZONE, ZONE, 1]);
    const append = await ask(T.VIRTIO_BLK_T_ZONE_APPEND, ZONE, BLOCK, 8);
    assert.equal(new DataView(append.data.buffer).getBigUint64(0, true), ZONE);
    assert.equal(append.len, 9);
    assert.equal(fixture.status().errors, 0, 'the medium is sound');
    fixture.close();
  });
}

test('a driver that does not know zones reads, and no more', async () => {
  const { fixture, ask } = await zonedDisk(false, featureSet(VIRTIO_F_VERSION_1));
  assert.match(fixture.device.refuses(featureSet(VIRTIO_F_VERSION_1))!, /does not know zones/);
  assert.equal((await ask(blk.VIRTIO_BLK_T_IN, 0n, NONE, 512)).status, OK);
  assert.equal((await ask(blk.VIRTIO_BLK_T_OUT, 0n, BLOCK, 0)).status, IOERR);
  assert.equal((await ask(blk.VIRTIO_BLK_T_ZONE_REPORT, 0n, NONE, 128)).status, UNSUPP);
  assert.equal((await ask(blk.VIRTIO_BLK_T_ZONE_APPEND, ZONE, BLOCK, 8)).status, UNSUPP);
  fixture.close();
});
