/** Configuration space, status, reset: what the device says about itself. */
import * as wire from '../../wire/vhost-user.ts';
import { VIRTIO_NET_F_MTU } from '../../wire/virtio-net.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext } from '../context.ts';
import { type BackendPeer, u64 } from '../peer.ts';

const CONFIG = wire.VHOST_USER_PROTOCOL_F_CONFIG;
const STATUS = wire.VHOST_USER_PROTOCOL_F_STATUS;
const RESET = wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE;
const GET = 'Front-end message types, GET_CONFIG';
const SET = 'Front-end message types, SET_CONFIG';

function access(
  offset: number,
  bytes: number,
  flags = 0,
  data = new Uint8Array(bytes),
): Uint8Array {
  return Buffer.concat([wire.ConfigHeader.encode({ offset, sizeBytes: bytes, flags }), data]);
}

/** The bytes, or null for the empty reply that means an error. */
async function read(peer: BackendPeer, offset: number, bytes: number): Promise<Uint8Array | null> {
  const answer = await peer.ask(REQUEST.GET_CONFIG, access(offset, bytes));
  return answer.length === 0 ? null : answer.subarray(wire.ConfigHeader.size);
}

const negotiated = (t: CheckContext): Promise<BackendPeer> => t.negotiated({ protocol: [CONFIG] });

export const configChecks: readonly Check[] = [
  check(
    'BE-CONFIG-001',
    'GET_CONFIG answers as many bytes as were asked for',
    "The reply's payload has the size of the request's: header and bytes.",
    GET,
    { needs: { protocol: [CONFIG] } },
    async (t) => {
      const peer = await negotiated(t);
      for (const bytes of new Set([1, t.offer.profile.configBytes])) {
        const answer = await peer.ask(REQUEST.GET_CONFIG, access(0, bytes));
        if (answer.length !== 12 + bytes) {
          t.fail(`${bytes} bytes asked for, a payload of ${answer.length}, expected ${12 + bytes}`);
        }
        const header = wire.ConfigHeader.decode(answer);
        if (header.offset !== 0 || header.sizeBytes !== bytes) {
          t.fail(`the reply is for ${header.sizeBytes} bytes at ${header.offset}`);
        }
      }
    },
  ),
  check(
    'BE-CONFIG-002',
    'A range outside the configuration space is an empty payload',
    'GET_CONFIG tells an error by a reply without payload; the session goes on.',
    GET,
    { level: 'full', needs: { protocol: [CONFIG] } },
    async (t) => {
      const peer = await negotiated(t);
      const answer = await peer.ask(REQUEST.GET_CONFIG, access(250, 6));
      if (answer.length !== 0) t.fail(`a payload of ${answer.length} bytes, expected none`);
      await peer.barrier('after the error');
    },
  ),
  check(
    'BE-CONFIG-003',
    'An offset that overflows is no way into memory',
    'Offset 0xfffffff0 is refused, by an empty payload or an end of the connection.',
    GET,
    { severity: 'should', level: 'full', needs: { protocol: [CONFIG] } },
    async (t) => {
      const peer = await negotiated(t);
      await peer.mustRefuse('GET_CONFIG at 0xfffffff0', REQUEST.GET_CONFIG, access(0xfffffff0, 4));
    },
  ),
  check(
    'BE-CONFIG-004',
    'A read-only field cannot be written',
    'SET_CONFIG with flag 0 (the driver wrote) does not change a field that is read-only, and a ' +
      'back-end must not accept it.',
    SET,
    { level: 'full', needs: { protocol: [CONFIG], devices: ['net', 'blk', 'scsi', 'fs'] } },
    async (t) => {
      const peer = await negotiated(t);
      const { offset, bytes } = t.offer.profile.readOnly as { offset: number; bytes: number };
      const before = await read(peer, offset, bytes);
      if (before === null) return t.notApplicable('the read-only field cannot be read');
      const other = before.map((byte) => byte ^ 0x5a);
      const outcome = await peer.attempt(REQUEST.SET_CONFIG, access(offset, bytes, 0, other));
      let ended = outcome === 'closed';
      const after = await read(ended ? await negotiated(t) : peer, offset, bytes).catch(
        async () => {
          ended = true; // some ack with success and then end the connection
          return read(await negotiated(t), offset, bytes);
        },
      );
      if (after === null || !Buffer.from(before).equals(after)) t.fail('the field has changed');
      if (outcome === 'accepted' && !ended)
        t.fail('SET_CONFIG was acked with success, and had no effect');
    },
  ),
  check(
    'BE-CONFIG-005',
    'SET_CONFIG with unknown flags is refused',
    'Flags are 0 (the driver wrote) or 1 (migration).',
    SET,
    { severity: 'may', level: 'full', needs: { protocol: [CONFIG] } },
    async (t) => {
      const peer = await negotiated(t);
      await peer.mustRefuse('SET_CONFIG, flags 0x80', REQUEST.SET_CONFIG, access(0, 1, 0x80));
    },
  ),
  check(
    'BE-CONFIG-006',
    'SET_CONFIG whose size is not its payload is refused',
    'The size field tells how many bytes follow.',
    'Virtio device config space',
    { severity: 'should', level: 'full', needs: { protocol: [CONFIG] } },
    async (t) => {
      const peer = await negotiated(t);
      const payload = access(0, 200, 0, new Uint8Array(1));
      await peer.mustRefuse('SET_CONFIG of 200 bytes with 1', REQUEST.SET_CONFIG, payload);
    },
  ),
  check(
    'BE-STATUS-001',
    'GET_STATUS answers what SET_STATUS said',
    'The device status is the one that was set; the device may add NEEDS_RESET.',
    'Front-end message types, SET_STATUS; virtio 1.2, 2.1',
    { needs: { protocol: [STATUS] } },
    async (t) => {
      const { virtio } = t.offer.profile; // FEATURES_OK is for drivers that the device takes
      const peer = await t.negotiated({ protocol: [STATUS], virtio });
      for (const status of [1, 3, 0xb]) {
        await peer.tell(REQUEST.SET_STATUS, u64(status));
        const got = await peer.askU64(REQUEST.GET_STATUS);
        if ((got & ~0x40n) !== BigInt(status)) t.fail(`status ${got}, expected ${status}`);
      }
    },
  ),
  check(
    'BE-STATUS-002',
    'Status 0 resets the status',
    'Writing zero begins a reset of the device; afterwards the status reads zero.',
    'virtio 1.2, 2.1 and 2.4',
    { needs: { protocol: [STATUS] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [STATUS] });
      await peer.tell(REQUEST.SET_STATUS, u64(3));
      await peer.tell(REQUEST.SET_STATUS, u64(0));
      const got = await peer.askU64(REQUEST.GET_STATUS);
      if (got !== 0n) t.fail(`status ${got} after a reset`);
    },
  ),
  check(
    'BE-STATUS-003',
    'With STATUS negotiated rings run at DRIVER_OK',
    'A front-end that sends the status sets up rings and says DRIVER_OK; then they are processed.',
    'Front-end message types, SET_STATUS',
    { needs: { protocol: [STATUS], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [STATUS] });
      await session.peer.tell(REQUEST.SET_STATUS, u64(0xf));
      await session.peer.barrier('DRIVER_OK');
      await t.work(session);
    },
  ),
  check(
    'BE-RESET-001',
    'RESET_DEVICE disables the rings and keeps the session',
    'After RESET_DEVICE rings have no effect until they are set up and enabled again; the ' +
      'connection and what was negotiated stay.',
    'Front-end message types, RESET_DEVICE',
    { needs: { protocol: [RESET], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [RESET] });
      await t.work(session);
      for (const ring of session.rig.rings) await t.stop(session, ring);
      await session.peer.tell(REQUEST.RESET_DEVICE);
      await session.peer.barrier('RESET_DEVICE');
      const { peer } = session;
      await peer.tell(REQUEST.SET_FEATURES, u64(peer.acked));
      const rig = t.guest();
      await t.shareMemory(peer, rig);
      for (const ring of rig.rings) await t.setUpRing(peer, ring);
      await t.work({ peer, rig, ring: rig.ring(t.offer.profile.workRing) });
    },
  ),
  check(
    'BE-RESET-002',
    'RESET_DEVICE while rings run stops their effects',
    'RESET_DEVICE disables all rings.',
    'Front-end message types, RESET_DEVICE',
    { needs: { protocol: [RESET], devices: ['blk', 'scsi', 'fs'], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [RESET] });
      await t.work(session);
      await session.peer.tell(REQUEST.RESET_DEVICE);
      await session.peer.barrier('RESET_DEVICE');
      t.post(session);
      t.kick(session.ring);
      await t.idle(session, 'the device was reset');
    },
  ),
  check(
    'BE-NET-001',
    'A valid MTU is taken',
    'NET_SET_MTU with 1500 is acked with zero.',
    'Front-end message types, NET_SET_MTU',
    { needs: { devices: ['net'], protocol: [wire.VHOST_USER_PROTOCOL_F_MTU] } },
    async (t) => {
      const peer = await t.negotiated({
        protocol: [wire.VHOST_USER_PROTOCOL_F_MTU],
        virtio: [VIRTIO_NET_F_MTU],
      });
      await peer.tell(REQUEST.NET_SET_MTU, u64(1500));
      await peer.barrier('NET_SET_MTU');
    },
  ),
  check(
    'BE-NET-002',
    'An MTU that cannot be is refused',
    'NET_SET_MTU with 10 bytes or with 1 MiB is answered by something else than zero.',
    'Front-end message types, NET_SET_MTU',
    { level: 'full', needs: { devices: ['net'], protocol: [wire.VHOST_USER_PROTOCOL_F_MTU] } },
    async (t) => {
      for (const mtu of [10, 1 << 20]) {
        const peer = await t.negotiated({
          protocol: [wire.VHOST_USER_PROTOCOL_F_MTU],
          virtio: [VIRTIO_NET_F_MTU],
        });
        await peer.mustRefuse(`an MTU of ${mtu}`, REQUEST.NET_SET_MTU, u64(mtu));
        peer.close();
      }
    },
  ),
];
