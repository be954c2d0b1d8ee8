/** What the runner's own requests show about a device: block, file system, network. */
import * as wire from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext, Session } from '../context.ts';
import {
  BLK_GET_ID,
  BLK_IN,
  BLK_S_IOERR,
  BLK_S_UNSUPP,
  blkRequest,
  fuseInit,
  fuseRequest,
  NET_HEADER_BYTES,
  type Request,
  testFrame,
} from '../profiles.ts';

const BLK = { devices: ['blk'], traffic: true } as const;
const FS = { devices: ['fs'], traffic: true } as const;
const NET = { devices: ['net'], traffic: true } as const;

/** Submits, kicks, waits, verifies. */
async function run(t: CheckContext, session: Session, request: Request): Promise<void> {
  session.rig.submit(session.ring, request.readable, request.writable);
  t.kick(session.ring);
  const [used] = await t.completed(session, 1);
  const problem = request.verify((used as { len: number }).len);
  if (problem !== null) t.fail(problem);
}

const RX_BYTES = 2048;

/** Sends a frame and returns the first that comes back, header included; null: none does. */
async function echoed(t: CheckContext, session: Session): Promise<Uint8Array | null> {
  const { rig } = session;
  const rx = rig.ring(0);
  const buffer = rig.alloc(RX_BYTES);
  rig.submit(rx, [], [{ gpa: buffer, len: RX_BYTES }]);
  t.kick(rx);
  await t.sleep(20); // a frame that comes before the ring is started is dropped, rightly
  const frame = testFrame(100, true);
  const gpa = rig.alloc(NET_HEADER_BYTES + 100);
  rig.write(gpa + NET_HEADER_BYTES, frame);
  rig.submit(session.ring, [{ gpa, len: NET_HEADER_BYTES + 100 }], []);
  t.kick(session.ring);
  await t.completed(session, 1);
  const [used] = await rig.collect(rx, 1, 4 * t.patience.quietMs);
  if (used === undefined) return null;
  t.saw(`ring 0: a frame of ${used.len} bytes, header included`);
  return rig.read(buffer, used.len);
}

const NO_ECHO =
  'no frame comes back: let the back-end return them (vring: reflect; testpmd: one port, io mode)';

export const deviceChecks: readonly Check[] = [
  check(
    'BE-BLK-001',
    'A sector can be read',
    'VIRTIO_BLK_T_IN of sector 0 ends with OK, and used.len counts the data and the status byte.',
    'virtio 1.2, 5.2.6',
    { needs: BLK },
    async (t) => {
      const session = await t.start();
      await run(t, session, blkRequest(session.rig, BLK_IN, 0n, 512));
    },
  ),
  check(
    'BE-BLK-002',
    'GET_ID ends with an answer',
    'VIRTIO_BLK_T_GET_ID fills 20 bytes or is not supported; either way the status is written.',
    'virtio 1.2, 5.2.6.1',
    { needs: BLK },
    async (t) => {
      const session = await t.start();
      const request = blkRequest(session.rig, BLK_GET_ID, 0n, 20);
      session.rig.submit(session.ring, request.readable, request.writable);
      t.kick(session.ring);
      await t.completed(session, 1);
      const status = session.rig.read(request.statusGpa, 1)[0];
      if (status !== 0 && status !== BLK_S_UNSUPP) t.fail(`status ${status}, expected 0 or 2`);
    },
  ),
  check(
    'BE-BLK-003',
    'A request of an unknown type is not supported',
    'The status of a request type that the device does not know is UNSUPP.',
    'virtio 1.2, 5.2.6.2',
    { needs: BLK },
    async (t) => {
      const session = await t.start();
      await run(t, session, blkRequest(session.rig, 0x7777, 0n, 512, BLK_S_UNSUPP));
    },
  ),
  check(
    'BE-BLK-004',
    'A sector beyond the end is an I/O error',
    'Reading at sector 2^60 ends with IOERR.',
    'virtio 1.2, 5.2.6.2',
    { needs: BLK },
    async (t) => {
      const session = await t.start();
      await run(t, session, blkRequest(session.rig, BLK_IN, 1n << 60n, 512, BLK_S_IOERR));
    },
  ),
  check(
    'BE-BLK-005',
    'The capacity is told',
    'The configuration space begins with the capacity in sectors, which is not zero here.',
    'virtio 1.2, 5.2.4',
    { needs: { ...BLK, protocol: [wire.VHOST_USER_PROTOCOL_F_CONFIG] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [wire.VHOST_USER_PROTOCOL_F_CONFIG] });
      const header = wire.ConfigHeader.encode({ offset: 0, sizeBytes: 60, flags: 0 });
      const payload = Buffer.concat([header, new Uint8Array(60)]);
      const answer = await peer.ask(REQUEST.GET_CONFIG, payload);
      if (answer.length !== 72) t.fail(`${answer.length} bytes of payload, expected 72`);
      const sectors = new DataView(answer.buffer, answer.byteOffset + 12).getBigUint64(0, true);
      if (sectors === 0n) t.fail('a capacity of 0 sectors');
    },
  ),
  check(
    'BE-FS-001',
    'FUSE_INIT is answered',
    'The first request of a session is FUSE_INIT; the answer has major version 7.',
    'virtio 1.2, 5.11.6.1',
    { needs: FS },
    async (t) => {
      const session = await t.start();
      const request = fuseInit(session.rig);
      await run(t, session, request);
      if (request.error() !== 0) t.fail(`FUSE_INIT ended with error ${request.error()}`);
      const major = new DataView(session.rig.read(request.answer + 16, 4).buffer);
      if (major.getUint32(0, true) !== 7) t.fail(`major version ${major.getUint32(0, true)}`);
    },
  ),
  check(
    'BE-FS-002',
    'An unknown FUSE request is not implemented',
    'An opcode that the device does not know is answered with an error, ENOSYS.',
    'virtio 1.2, 5.11.6',
    { severity: 'should', needs: FS },
    async (t) => {
      const session = await t.start();
      await run(t, session, fuseInit(session.rig));
      const request = fuseRequest(session.rig, 4000, 99n, new Uint8Array(16));
      await run(t, session, request);
      if (request.error() !== -38) t.fail(`error ${request.error()}, expected -38 (ENOSYS)`);
    },
  ),
  check(
    'BE-NET-010',
    'A frame that comes back has a proper header',
    'Without MRG_RXBUF a received frame fills one buffer and num_buffers is 1; no flag or GSO ' +
      'type that was not negotiated is set, and the bytes are those that were sent.',
    'virtio 1.2, 5.1.6.4',
    { needs: NET },
    async (t) => {
      const session = await t.start();
      const got = await echoed(t, session);
      if (got === null) return t.notApplicable(NO_ECHO);
      if (got.length !== NET_HEADER_BYTES + 100) {
        t.fail(`${got.length} bytes, expected ${NET_HEADER_BYTES + 100}`);
      }
      const header = new DataView(got.buffer, got.byteOffset, NET_HEADER_BYTES);
      if (header.getUint16(10, true) !== 1) t.fail(`num_buffers ${header.getUint16(10, true)}`);
      if (got[0] !== 0 || got[1] !== 0) t.fail(`flags ${got[0]}, gso_type ${got[1]}`);
      const sent = testFrame(100, true);
      if (!Buffer.from(sent).equals(got.subarray(NET_HEADER_BYTES))) t.fail('other bytes');
    },
  ),
  check(
    'BE-NET-011',
    'A disabled receive ring gets no frame',
    'In the disabled state the device supplies no new frames.',
    'Ring states',
    { needs: { ...NET, virtio: [wire.VHOST_USER_F_PROTOCOL_FEATURES] } },
    async (t) => {
      const session = await t.start();
      if ((await echoed(t, session)) === null) t.notApplicable(NO_ECHO);
      const off = wire.VringState.encode({ index: 0, num: 0 });
      await session.peer.tell(REQUEST.SET_VRING_ENABLE, off);
      await session.peer.barrier('SET_VRING_ENABLE 0');
      const got = await echoed(t, session);
      if (got !== null) t.fail('a frame was received by a disabled ring');
    },
  ),
];
