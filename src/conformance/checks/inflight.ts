/** The inflight region: its layout, its life, and what a restarted back-end makes of it. */
import { SharedRegion } from '../../memory/index.ts';
import { arena, type Fd } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext, Session } from '../context.ts';
import type { BackendPeer } from '../peer.ts';
import { closeAll } from '../raw-socket.ts';

const INFLIGHT = wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;
const NEEDS = { protocol: [INFLIGHT] } as const;
const SECTION = 'Inflight I/O tracking';
const SIZE = 64;
/** QueueRegionSplit: u64 features, u16 version, desc_num, last_batch_head, used_idx. */
const HEADER_BYTES = 16;
const DESC_BYTES = 16;

type Area = { readonly description: wire.InflightDescription; readonly fd: Fd };

async function getArea(t: CheckContext, peer: BackendPeer, queues: number): Promise<Area> {
  const wanted = wire.InflightDescription.encode({
    mapBytes: 0n,
    fdOffset: 0n,
    queueCount: queues,
    queueSize: SIZE,
    padding: 0,
  });
  await peer.send(REQUEST.GET_INFLIGHT_FD, wanted);
  const reply = await peer.reply(REQUEST.GET_INFLIGHT_FD);
  const [fd] = reply.fds;
  if (fd === undefined || reply.fds.length !== 1) {
    closeAll(reply.fds);
    return t.fail(`${reply.fds.length} fds came with the reply, expected 1`);
  }
  t.own(fd);
  const padded = new Uint8Array(wire.InflightDescription.size);
  padded.set(reply.payload.subarray(0, padded.length));
  return { description: wire.InflightDescription.decode(padded), fd };
}

async function setArea(peer: BackendPeer, { description, fd }: Area): Promise<void> {
  const payload = wire.InflightDescription.encode(description);
  await peer.tell(REQUEST.SET_INFLIGHT_FD, payload, { fds: [fd] });
}

/** The region as memory of ours. */
function mapArea(t: CheckContext, { description, fd }: Area): DataView {
  const region = t.own(
    SharedRegion.map(
      fd.number,
      {
        guestPhysAddr: 0n,
        userAddr: 0n,
        sizeBytes: description.mapBytes,
        fdOffset: description.fdOffset,
      },
      'inflight region',
    ),
  );
  return new DataView(arena().buffer, region.offset, region.sizeBytes);
}

/** Bytes of one queue's region: all regions have the same size. */
function stride(area: Area): number {
  return Number(area.description.mapBytes) / area.description.queueCount;
}

async function startTracked(t: CheckContext): Promise<{ session: Session; area: Area }> {
  const peer = await t.negotiated({ protocol: [INFLIGHT] });
  const { rings, workRing } = t.offer.profile;
  const area = await getArea(t, peer, rings);
  await setArea(peer, area);
  const rig = t.guest({ size: SIZE });
  await t.shareMemory(peer, rig);
  for (const ring of rig.rings) await t.setUpRing(peer, ring);
  return { session: { peer, rig, ring: rig.ring(workRing) }, area };
}

export const inflightChecks: readonly Check[] = [
  check(
    'BE-INFLIGHT-001',
    'GET_INFLIGHT_FD makes a region that is large enough',
    'The reply has an fd, the number and size of queues that were asked for, and a size that ' +
      'holds a descriptor state for each descriptor.',
    SECTION,
    { needs: NEEDS },
    async (t) => {
      const peer = await t.negotiated({ protocol: [INFLIGHT] });
      const { description } = await getArea(t, peer, 2);
      const { mapBytes, queueCount, queueSize } = description;
      if (queueCount !== 2 || queueSize !== SIZE) t.fail(`${queueCount} queues of ${queueSize}`);
      const least = 2 * (HEADER_BYTES + DESC_BYTES * SIZE);
      if (mapBytes < BigInt(least)) t.fail(`${mapBytes} bytes, at least ${least} are needed`);
    },
  ),
  check(
    'BE-INFLIGHT-002',
    'A fresh region is zeroed',
    'Version 0 says that nobody has used the region: nothing is in flight.',
    SECTION,
    { needs: NEEDS },
    async (t) => {
      const peer = await t.negotiated({ protocol: [INFLIGHT] });
      const area = await getArea(t, peer, 1);
      const view = mapArea(t, area);
      for (let n = 0; n < SIZE; n++) {
        const inflight = view.getUint8(HEADER_BYTES + DESC_BYTES * n);
        if (inflight !== 0) t.fail(`descriptor ${n} of a fresh region is in flight`);
      }
      const version = view.getUint16(8, true);
      if (version > 1) t.fail(`version ${version}`);
    },
  ),
  check(
    'BE-INFLIGHT-003',
    'The region is kept as the layout says',
    'After completed requests the version is 1, desc_num the ring size, used_idx the used ' +
      "ring's, and nothing is in flight.",
    SECTION,
    { needs: { ...NEEDS, traffic: true } },
    async (t) => {
      const { session, area } = await startTracked(t);
      await t.work(session, 3);
      await t.sleep(20);
      const view = mapArea(t, area);
      const at = session.ring.index * stride(area);
      const [version, size, used] = [8, 10, 14].map((o) => view.getUint16(at + o, true));
      t.saw(`version ${version}, desc_num ${size}, used_idx ${used}`);
      if (version !== 1) t.fail(`version ${version}, expected 1`);
      if (size !== SIZE) t.fail(`desc_num ${size}, expected ${SIZE}`);
      if (used !== session.ring.usedIndex) {
        t.fail(`used_idx ${used}, the used ring's is ${session.ring.usedIndex}`);
      }
      for (let n = 0; n < SIZE; n++) {
        const inflight = view.getUint8(at + HEADER_BYTES + DESC_BYTES * n);
        if (inflight !== 0) t.fail(`descriptor ${n} is in flight, all requests were completed`);
      }
    },
  ),
  check(
    'BE-INFLIGHT-004',
    'Requests in flight are resubmitted by the next session',
    'A new session that gets the region back does what it says was in flight, though the base is ' +
      'past it.',
    SECTION,
    { needs: { ...NEEDS, traffic: true } },
    async (t) => {
      const first = await t.negotiated({ protocol: [INFLIGHT] });
      const area = await getArea(t, first, t.offer.profile.rings);
      first.close();
      const peer = await t.negotiated({ protocol: [INFLIGHT] });
      const rig = t.guest({ size: SIZE });
      const ring = rig.ring(t.offer.profile.workRing);
      const session = { peer, rig, ring };
      const view = mapArea(t, area);
      const make = t.offer.profile.request;
      if (make === null) return t.notApplicable('no request is known');
      for (let n = 0; n < 2; n++) {
        const request = make(rig);
        const head = rig.submit(ring, request.readable, request.writable);
        const at = ring.index * stride(area) + HEADER_BYTES + DESC_BYTES * head;
        view.setUint8(at, 1);
        view.setBigUint64(at + 8, BigInt(n), true);
      }
      const at = ring.index * stride(area);
      view.setUint16(at + 8, 1, true);
      view.setUint16(at + 10, SIZE, true);
      t.saw('two requests are in flight, says the region; the base is 2');
      await setArea(peer, area);
      await t.shareMemory(peer, rig);
      for (const each of rig.rings) {
        await t.setUpRing(peer, each, each === ring ? { base: 2 } : {});
      }
      t.kick(ring);
      await t.completed(session, 2);
      await t.stop(session);
    },
  ),
];
