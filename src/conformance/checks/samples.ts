/** One correct instance of every request, for the checks that are derived from the table. */
import { createEventfd, createMemfd, type Fd, socketPair } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type CheckContext, memoryTable, singleRegion, state } from '../context.ts';
import { u64 } from '../peer.ts';

export type Sample = { readonly payload: Uint8Array; readonly fds: readonly Fd[] };

const REGION_BYTES = 1 << 20;
const NONE = new Uint8Array(0);
/** VERSION_1 and bit 30. */
const COMMON = (1n << 32n) | (1n << 30n);

const region: wire.MemoryRegion = {
  guestPhysAddr: 0x1_0000_0000n,
  sizeBytes: BigInt(REGION_BYTES),
  userAddr: 0x7f00_0000_0000n,
  fdOffset: 0n,
};

function config(bytes: number): Uint8Array {
  const header = wire.ConfigHeader.encode({ offset: 0, sizeBytes: bytes, flags: 0 });
  return Buffer.concat([header, new Uint8Array(bytes)]);
}

const eventfd = (t: CheckContext): Fd => t.own(createEventfd('sample'));
const memfd = (t: CheckContext): Fd => t.own(createMemfd('sample', REGION_BYTES));

function socket(t: CheckContext): Fd {
  const [ours, theirs] = socketPair();
  t.own(ours);
  return t.own(theirs);
}

type Maker = (t: CheckContext) => Sample;

const plain =
  (payload: Uint8Array = NONE): Maker =>
  () => ({ payload, fds: [] });

const MAKERS: ReadonlyMap<number, Maker> = new Map<number, Maker>([
  [REQUEST.GET_FEATURES.id, plain()],
  [REQUEST.SET_FEATURES.id, (t) => ({ payload: u64(t.offer.features & COMMON), fds: [] })],
  [REQUEST.SET_OWNER.id, plain()],
  [REQUEST.RESET_OWNER.id, plain()],
  [REQUEST.SET_MEM_TABLE.id, (t) => ({ payload: memoryTable([region]), fds: [memfd(t)] })],
  [
    REQUEST.SET_LOG_BASE.id,
    (t) => ({
      payload: wire.LogDescription.encode({ sizeBytes: BigInt(REGION_BYTES), fdOffset: 0n }),
      fds: [memfd(t)],
    }),
  ],
  [REQUEST.SET_LOG_FD.id, (t) => ({ payload: NONE, fds: [eventfd(t)] })],
  [REQUEST.SET_VRING_NUM.id, plain(state(0, 16))],
  [REQUEST.SET_VRING_BASE.id, plain(state(0, 0))],
  [REQUEST.GET_VRING_BASE.id, plain(state(0, 0))],
  [REQUEST.SET_VRING_KICK.id, (t) => ({ payload: u64(0), fds: [eventfd(t)] })],
  [REQUEST.SET_VRING_CALL.id, (t) => ({ payload: u64(0), fds: [eventfd(t)] })],
  [REQUEST.SET_VRING_ERR.id, (t) => ({ payload: u64(0), fds: [eventfd(t)] })],
  [REQUEST.GET_PROTOCOL_FEATURES.id, plain()],
  [REQUEST.GET_QUEUE_NUM.id, plain()],
  [REQUEST.SET_VRING_ENABLE.id, plain(state(0, 0))],
  [REQUEST.SEND_RARP.id, plain(u64(0x01c000000002n))],
  [REQUEST.NET_SET_MTU.id, plain(u64(1500))],
  [REQUEST.SET_BACKEND_REQ_FD.id, (t) => ({ payload: NONE, fds: [socket(t)] })],
  [
    REQUEST.IOTLB_MSG.id,
    plain(
      wire.IotlbMessage.encode({
        iova: 0n,
        sizeBytes: 4096n,
        userAddr: 0n,
        permissions: 3,
        type: 3,
        padding: new Uint8Array(6),
      }),
    ),
  ],
  [REQUEST.SET_VRING_ENDIAN.id, plain(state(0, 0))],
  [REQUEST.GET_CONFIG.id, (t) => ({ payload: config(t.offer.profile.configBytes), fds: [] })],
  [REQUEST.SET_CONFIG.id, (t) => ({ payload: config(t.offer.profile.configBytes), fds: [] })],
  [REQUEST.CLOSE_CRYPTO_SESSION.id, plain(u64(1))],
  [REQUEST.POSTCOPY_ADVISE.id, plain()],
  [REQUEST.POSTCOPY_LISTEN.id, plain()],
  [REQUEST.POSTCOPY_END.id, plain()],
  [
    REQUEST.GET_INFLIGHT_FD.id,
    plain(
      wire.InflightDescription.encode({
        mapBytes: 0n,
        fdOffset: 0n,
        queueCount: 1,
        queueSize: 16,
        padding: 0,
      }),
    ),
  ],
  [
    REQUEST.SET_INFLIGHT_FD.id,
    (t) => ({
      payload: wire.InflightDescription.encode({
        mapBytes: 65536n,
        fdOffset: 0n,
        queueCount: 1,
        queueSize: 16,
        padding: 0,
      }),
      fds: [memfd(t)],
    }),
  ],
  [REQUEST.RESET_DEVICE.id, plain()],
  [REQUEST.VRING_KICK.id, plain(state(0, 0))],
  [REQUEST.GET_MAX_MEM_SLOTS.id, plain()],
  [REQUEST.ADD_MEM_REG.id, (t) => ({ payload: singleRegion(region), fds: [memfd(t)] })],
  [REQUEST.REM_MEM_REG.id, plain(singleRegion(region))],
  [REQUEST.SET_STATUS.id, plain(u64(1))],
  [REQUEST.GET_STATUS.id, plain()],
  [REQUEST.GET_SHARED_OBJECT.id, plain(new Uint8Array(16).fill(0x11))],
  [
    REQUEST.SET_DEVICE_STATE_FD.id,
    (t) => ({
      payload: wire.DeviceStateTransfer.encode({ direction: 0, phase: 0 }),
      fds: [socket(t)],
    }),
  ],
  [REQUEST.CHECK_DEVICE_STATE.id, plain()],
  [REQUEST.GET_SHMEM_CONFIG.id, plain()],
]);

/** Null for requests that only make sense inside a conversation of their own. */
export function sampleOf(request: number, t: CheckContext): Sample | null {
  return MAKERS.get(request)?.(t) ?? null;
}

export function hasSample(request: number): boolean {
  return MAKERS.has(request);
}

/** Requests before which another one must have been sent. */
export const COMES_AFTER: Readonly<Record<number, number>> = {
  [REQUEST.REM_MEM_REG.id]: REQUEST.ADD_MEM_REG.id,
  [REQUEST.CHECK_DEVICE_STATE.id]: REQUEST.SET_DEVICE_STATE_FD.id,
  [REQUEST.POSTCOPY_LISTEN.id]: REQUEST.POSTCOPY_ADVISE.id,
  [REQUEST.POSTCOPY_END.id]: REQUEST.POSTCOPY_ADVISE.id,
};
