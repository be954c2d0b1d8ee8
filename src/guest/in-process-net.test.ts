/** The traditional path without an uplink: the device in this thread returns every frame. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arena, createEventfd, drainEventfd, openFdCount } from '../sys/index.ts';
import { VHOST_F_LOG_ALL } from '../wire/vhost-user.ts';
import { featureSet } from '../wire/virtio.ts';
import { DirtyPages, PAGE_BYTES } from './dirty-pages.ts';
import { parseFeatureChoice } from './features.ts';
import { GuestIommu, type IommuMode, remapFreeSlots } from './iommu.ts';
import { openInProcessNet } from './in-process-net.ts';
import { NO_OFFLOAD } from './link.ts';
import { reapRx } from './net-driver.hot.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';
import { runTraffic, type GenerateOptions, type TrafficReport } from './traffic.ts';

const TO = '02:00:00:00:00:02';

type Wishes = NetGuestOptions & { readonly iommu?: IommuMode };

async function start({ iommu, ...options }: Wishes = {}): Promise<NetGuest> {
  const space = iommu === undefined ? null : new GuestIommu(iommu);
  const events = space === null ? {} : { iotlbMiss: space.missed.bind(space) };
  const { queuePairs = 1, mtu } = options;
  const backend = await openInProcessNet({
    tap: null,
    queuePairs,
    iommu: space !== null,
    events,
    ...(mtu == null ? {} : { mtu }),
  });
  if (space !== null) space.setPeer(backend.iotlb!);
  const link = space === null ? {} : { addressSpace: space };
  return NetGuest.start(backend, { notify: 'manual', ...options }, link);
}

/** Sends so many frames, of which all have to come back, whole and in order. */
async function round(
  guest: NetGuest,
  frames: number,
  generate: Partial<GenerateOptions> = {},
): Promise<TrafficReport> {
  const report = await runTraffic({
    guest,
    seconds: 20,
    verifyEvery: 1,
    generate: { sizeBytes: 64, targetMac: TO, frames, window: 32, ...generate },
  });
  const { sent, good, verified, lost, corrupt, repeated, reordered } = report.records;
  assert.deepEqual([good, verified, lost + corrupt + repeated + reordered], [sent, sent, 0]);
  assert.equal(report.sent.frames, frames);
  return report;
}

const choose = (text: string) => ({ features: parseFeatureChoice(text, '--features') });
const VARIANTS: readonly [string, Wishes, Partial<GenerateOptions>][] = [
  ['split', {}, {}],
  ['packed', { packed: true }, {}],
  ['jumbo frames in mergeable buffers', { mtu: 9000 }, { sizeBytes: 9000 }],
  [
    'whole jumbo frames, packed',
    { mtu: 9000, packed: true, ...choose('-mrg') },
    { sizeBytes: 9000 },
  ],
  ['two pairs', { queuePairs: 2, packed: true }, { flows: 8 }],
  ['USO', { mtu: 1500 }, { gso: 'udp4', sizeBytes: 60_000, window: 4 }],
  ['a tag', {}, { vlan: 5, sizeBytes: 100 }],
  ['behind an IOMMU', { iommu: 'offset' }, {}],
  ['behind an IOMMU, scattered, packed', { iommu: 'scatter', packed: true }, {}],
];
for (const [name, options, generate] of VARIANTS) {
  test(`frames go round: ${name}`, { timeout: 30_000 }, async () => {
    const before = openFdCount();
    const guest = await start(options);
    const report = await round(guest, 400, generate);
    assert.ok(report.kicks > 0 && report.kicks <= 800, `${report.kicks} kicks`);
    await guest.close();
    assert.equal(guest.failure, null);
    assert.equal(openFdCount(), before);
  });
}

test('the work of a kick is done when the driver goes on', async () => {
  const guest = await start();
  const frame = new Uint8Array(64).fill(1);
  frame.set([2, 0, 0, 0, 0, 2]);
  for (let i = 1; i <= 3; i++) {
    assert.ok(guest.send(frame, NO_OFFLOAD));
    assert.equal(guest.tx[0]!.ring.outstanding, 1, 'one chain is out, which is used already');
  }
  const received = reapRx(guest.rx[0]!, guest.rxFrames[0]!, guest.mergeable);
  assert.equal(received, 3, 'and they are here');
  await guest.close();
});

test('rings stop and go on where they were, also in the middle of traffic', async () => {
  for (const packed of [false, true]) {
    const guest = await start({ packed });
    for (let i = 0; i < 3; i++) {
      await round(guest, 100 + i);
      const bases = await guest.stop();
      assert.equal(bases.length, 2);
      await guest.resume();
    }
    await guest.close();
  }
});

test('a range that moves, and an IOTLB that forgets, while frames go round', async () => {
  const guest = await start({ iommu: 'scatter', packed: true });
  const iommu = guest.addressSpace as GuestIommu;
  const running = round(guest, 3000, { rate: 20_000 });
  for (let i = 0; i < 10; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    await remapFreeSlots(guest.tx[0]!, iommu, 8);
    await iommu.invalidateAll();
  }
  await running;
  assert.ok(iommu.counters.updates > 20, `${iommu.counters.updates} updates`);
  await guest.close();
});

test('a ring that its driver breaks is the only one that stops', async () => {
  const guest = await start({ queuePairs: 2 });
  using err = createEventfd('err');
  await guest.backend.setVringErr(3, err.number);
  const { descUva } = guest.tx[1]!.vring(0);
  const ringAt = Number(descUva) - guest.memory.baseUva + guest.memory.offset;
  const availAt = ringAt + 16 * guest.tx[1]!.plan.size;
  arena().view.setUint16(availAt + 2, 0x7000, true); // more than a ring has
  guest.backend.inThread!.kicked(3);
  assert.equal(drainEventfd(err.number), 1, 'its front-end is told');
  await round(guest, 200, { flows: 1 });
  await guest.close();
});

test('what the device writes is in the dirty log', async () => {
  for (const packed of [false, true]) {
    const guest = await start({ packed });
    const log = new DirtyPages(guest.memory);
    const { backend, memory } = guest;
    await backend.dirtyLog!.setLogBase(log.fd.number, log.sizeBytes);
    await backend.setFeatures(guest.features | featureSet(VHOST_F_LOG_ALL));
    for (const queue of guest.queues) {
      const { descUva, availUva, usedUva } = queue.vring(0);
      const logGpa = BigInt(queue.usedGpa);
      await backend.setVringAddr(queue.index, { descUva, availUva, usedUva }, logGpa);
    }
    log.take();
    const whole = arena().bytes.subarray(memory.offset, memory.offset + memory.sizeBytes);
    const before = Buffer.from(whole);
    await round(guest, 100);
    const own = new Set<number>();
    for (const { driverBytes } of guest.queues) {
      for (let at = driverBytes[0]; at < driverBytes[1]; at += PAGE_BYTES) own.add(at / PAGE_BYTES);
    }
    const marked = new Set(log.take());
    let changed = 0;
    for (let page = 0; page < memory.sizeBytes / PAGE_BYTES; page++) {
      const [from, to] = [page * PAGE_BYTES, (page + 1) * PAGE_BYTES];
      if (own.has(page) || before.subarray(from, to).equals(whole.subarray(from, to))) continue;
      changed++;
      assert.ok(marked.has(page), `page ${page}`);
    }
    assert.ok(changed > 10, `${changed} pages`);
    await guest.close();
    log.close();
  }
});

test('an interface that cannot be had is named', async () => {
  const before = openFdCount();
  await assert.rejects(openInProcessNet({ tap: 'not/a/name' }), { code: 'ERR_VRING_GUEST_TAP' });
  await assert.rejects(openInProcessNet({ tap: 'lo' }), {
    code: 'ERR_VRING_GUEST_TAP',
    message: /^lo: /,
  });
  assert.equal(openFdCount(), before);
});
