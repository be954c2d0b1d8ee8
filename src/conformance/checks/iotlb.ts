/** An IOMMU in front of the device: IOTLB messages both ways. */
import { IOTLB_INVALIDATE, IOTLB_MISS, IOTLB_UPDATE } from '../../wire/vhost-user-parse.ts';
import * as wire from '../../wire/vhost-user.ts';
import { VIRTIO_F_ACCESS_PLATFORM } from '../../wire/virtio.ts';
import { EVENT_MESSAGE, REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext, Session } from '../context.ts';
import { closeAll } from '../raw-socket.ts';

const CHANNEL = wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ;
const NEEDS = { protocol: [CHANNEL], virtio: [VIRTIO_F_ACCESS_PLATFORM] } as const;
const SECTION = 'IOMMU support';
const DELTA = 0x10_0000_0000;
const PAGE = 4096;
const ASK = wire.VHOST_USER_VERSION | wire.VHOST_USER_NEED_REPLY_MASK;

type Fields = Partial<ReturnType<typeof wire.IotlbMessage.decode>>;

function message(fields: Fields): Uint8Array {
  return wire.IotlbMessage.encode({
    iova: 0n,
    sizeBytes: BigInt(PAGE),
    userAddr: 0n,
    permissions: 3,
    type: IOTLB_UPDATE,
    padding: new Uint8Array(6),
    ...fields,
  });
}

/** Rings, buffers, everything by I/O virtual addresses that the back-end must ask for. */
async function startMapped(t: CheckContext): Promise<Session> {
  return t.start({
    protocol: [CHANNEL],
    virtio: [VIRTIO_F_ACCESS_PLATFORM],
    iovaDelta: DELTA,
    size: 16,
  });
}

/** Maps what the back-end misses; every message must be acked. Returns the misses. */
class Iommu {
  readonly misses: { iova: number; permissions: number }[] = [];
  #stopped = false;
  readonly #session: Session;
  readonly #running: Promise<void>;
  /** Pages whose translation is not given. */
  readonly withheld = new Set<number>();

  constructor(session: Session) {
    this.#session = session;
    this.#running = this.#serve();
    this.#running.catch(() => {});
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #serve(): Promise<void> {
    const { peer, rig } = this.#session;
    while (!this.#stopped) {
      const got = await peer.channelRequest(20);
      if (got === null) continue;
      closeAll(got.fds);
      if (got.request !== EVENT_MESSAGE.IOTLB_MSG.id || got.payload.length < 26) continue;
      const padded = new Uint8Array(wire.IotlbMessage.size);
      padded.set(got.payload.subarray(0, padded.length));
      const miss = wire.IotlbMessage.decode(padded);
      if (miss.type !== IOTLB_MISS) continue;
      const iova = Math.floor(Number(miss.iova) / PAGE) * PAGE;
      this.misses.push({ iova: Number(miss.iova), permissions: miss.permissions });
      if (this.withheld.has(iova)) continue;
      const uva = iova - DELTA - rig.memory.baseGpa + rig.memory.baseUva;
      const inside = iova - DELTA >= rig.memory.baseGpa && iova - DELTA < rig.endGpa;
      if (!inside) continue;
      const update = message({ iova: BigInt(iova), userAddr: BigInt(uva) });
      // With need_reply, as QEMU sends it: BE-IOTLB-001 is about those without.
      const value = await peer.askU64(REQUEST.IOTLB_MSG, update, { flags: ASK });
      if (value !== 0n) throw new Error(`an IOTLB update was refused with ${value}`);
    }
  }
}

export const iotlbChecks: readonly Check[] = [
  check(
    'BE-IOTLB-001',
    'IOTLB messages are always acked',
    'Update and invalidate are answered by a u64, zero for success, whether or not need_reply is ' +
      'set.',
    `${SECTION}; Front-end message types, IOTLB_MSG`,
    { needs: NEEDS },
    async (t) => {
      const peer = await t.negotiated({
        protocol: [CHANNEL],
        virtio: [VIRTIO_F_ACCESS_PLATFORM],
      });
      const rig = t.guest();
      await t.shareMemory(peer, rig);
      const userAddr = BigInt(rig.memory.baseUva);
      const iova = BigInt(DELTA);
      for (const fields of [
        { userAddr, iova },
        { type: IOTLB_INVALIDATE, iova },
      ]) {
        const value = await peer.askU64(REQUEST.IOTLB_MSG, message(fields));
        if (value !== 0n) t.fail(`IOTLB_MSG type ${fields.type ?? 2} was refused with ${value}`);
      }
      await peer.barrier('after IOTLB messages');
    },
  ),
  check(
    'BE-IOTLB-002',
    'Misses are told and updates are used',
    'A back-end that lacks a translation sends IOTLB_MSG (miss) on the backend channel, and goes ' +
      'on when the update comes; ring addresses are I/O virtual, too.',
    SECTION,
    { needs: { ...NEEDS, traffic: true } },
    async (t) => {
      const session = await startMapped(t);
      const iommu = new Iommu(session);
      try {
        await t.work(session, 2);
      } finally {
        await iommu.stop();
      }
      t.saw(`${iommu.misses.length} misses`);
      if (iommu.misses.length === 0) t.fail('no miss was told, and yet requests were completed');
    },
  ),
  check(
    'BE-IOTLB-003',
    'An invalidated translation is asked for again',
    'After an invalidate the old translation is not used: the back-end misses again.',
    SECTION,
    { needs: { ...NEEDS, traffic: true } },
    async (t) => {
      const session = await startMapped(t);
      const iommu = new Iommu(session);
      try {
        await t.work(session);
        await t.sleep(t.patience.quietMs); // until nothing is asked any more
        await iommu.stop();
        const { peer, rig } = session;
        const everything = message({
          type: IOTLB_INVALIDATE,
          iova: BigInt(rig.memory.baseGpa + DELTA),
          sizeBytes: BigInt(rig.memory.sizeBytes),
        });
        const value = await peer.askU64(REQUEST.IOTLB_MSG, everything, { flags: ASK });
        if (value !== 0n) t.fail(`the invalidate was refused with ${value}`);
        const again = new Iommu(session);
        await t.work(session).finally(() => again.stop());
        if (again.misses.length === 0) t.fail('no miss after everything was invalidated');
      } finally {
        await iommu.stop();
      }
    },
  ),
  check(
    'BE-IOTLB-004',
    'An update outside shared memory is refused',
    'User addresses of updates lie in the memory that was shared.',
    SECTION,
    { severity: 'should', level: 'full', needs: NEEDS },
    async (t) => {
      const peer = await t.negotiated({
        protocol: [CHANNEL],
        virtio: [VIRTIO_F_ACCESS_PLATFORM],
      });
      await t.shareMemory(peer, t.guest());
      const wrong = message({ iova: BigInt(DELTA), userAddr: 0x1234_5000n });
      await peer.mustRefuse('an update to user address 0x12345000', REQUEST.IOTLB_MSG, wrong);
    },
  ),
];
