/** Bytes on the socket: legal ways to cut them, and illegal ones that must not kill anybody. */
import { createEventfd } from '../../sys/index.ts';
import { VhostUserHeader } from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext } from '../context.ts';
import type { BackendPeer } from '../peer.ts';
import { closeAll, encodeMessage } from '../raw-socket.ts';

const SECTION = 'Message Specification';
const NONE = new Uint8Array(0);
const SURVIVES =
  'Whatever a front-end sends, the back-end lives on: it ends the session at most, and serves ' +
  'the next one.';

/** The bytes of one destructive check; whether it survived is seen by the runner afterwards. */
function malformed(
  id: string,
  what: string,
  act: (t: CheckContext, peer: BackendPeer) => Promise<void>,
): Check {
  return check(
    id,
    `${what} does not kill`,
    SURVIVES,
    SECTION,
    { level: 'destructive' },
    async (t) => {
      const peer = await t.negotiated();
      t.note(`then ${what}`);
      await act(t, peer);
      await peer.receive(t.patience.quietMs); // an answer, an end, or nothing: all are right
    },
  );
}

const bytes = (request: number, flags: number, payload = NONE, size = payload.length) =>
  encodeMessage(request, flags, payload, size);
const getFeatures = REQUEST.GET_FEATURES.id;

export const framingChecks: readonly Check[] = [
  check(
    'BE-FRAME-001',
    'A message may arrive byte by byte',
    'The socket is a stream: a message is complete when its last byte is there.',
    SECTION,
    {},
    async (t) => {
      const peer = await t.negotiated();
      for (const byte of bytes(getFeatures, 1)) {
        await peer.sendBytes(Uint8Array.of(byte));
        await t.sleep(1);
      }
      closeAll((await peer.reply(REQUEST.GET_FEATURES)).fds);
    },
  ),
  check(
    'BE-FRAME-002',
    'Several messages may arrive at once',
    'Messages in one segment of the stream are handled one after the other.',
    SECTION,
    {},
    async (t) => {
      const peer = await t.negotiated();
      const three = Buffer.concat([1, 2, 3].map(() => bytes(getFeatures, 1)));
      t.note('three GET_FEATURES in one write');
      await peer.sendBytes(three);
      for (let n = 0; n < 3; n++) closeAll((await peer.reply(REQUEST.GET_FEATURES)).fds);
    },
  ),
  check(
    'BE-FRAME-003',
    'A header and its payload may arrive apart',
    'A payload that comes later than its header is waited for.',
    SECTION,
    {},
    async (t) => {
      const peer = await t.negotiated();
      const message = bytes(REQUEST.SET_VRING_BASE.id, 1, new Uint8Array(8));
      await peer.sendBytes(message.subarray(0, VhostUserHeader.size));
      await t.sleep(30);
      await peer.sendBytes(message.subarray(VhostUserHeader.size));
      await peer.barrier('a message in two parts');
    },
  ),
  check(
    'BE-FRAME-004',
    'A message of another version is refused',
    'The version in the flags is 1; what another version means is unknown.',
    'Header',
    { severity: 'should', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      await peer.send(REQUEST.GET_FEATURES, undefined, { flags: 2 });
      const got = await peer.receive(500);
      if (typeof got !== 'string') {
        closeAll(got.fds);
        t.fail('a message of version 2 was answered');
      }
    },
  ),
  malformed('BE-MALF-001', 'a message of version 0', async (_t, peer) => {
    await peer.sendBytes(bytes(getFeatures, 0));
  }),
  malformed('BE-MALF-002', 'a message with all flags set', async (_t, peer) => {
    await peer.sendBytes(bytes(getFeatures, 0xffff_ffff));
  }),
  malformed('BE-MALF-003', 'a reply that nobody asked for', async (_t, peer) => {
    await peer.sendBytes(bytes(getFeatures, 5, new Uint8Array(8)));
  }),
  malformed('BE-MALF-004', 'a size of 4 GiB', async (_t, peer) => {
    await peer.sendBytes(bytes(REQUEST.SET_FEATURES.id, 1, new Uint8Array(8), 0xffff_ffff));
  }),
  malformed('BE-MALF-005', 'a payload of 64 KiB', async (_t, peer) => {
    await peer.sendBytes(bytes(REQUEST.SET_CONFIG.id, 1, new Uint8Array(65536)));
  }),
  malformed('BE-MALF-006', 'a size with the sign bit', async (_t, peer) => {
    await peer.sendBytes(bytes(REQUEST.SET_MEM_TABLE.id, 1, new Uint8Array(40), 0x8000_0000));
  }),
  malformed('BE-MALF-007', 'half a header and the end', async (_t, peer) => {
    await peer.sendBytes(bytes(getFeatures, 1).subarray(0, 6));
    peer.close();
  }),
  malformed('BE-MALF-008', 'half a payload and the end', async (_t, peer) => {
    await peer.sendBytes(bytes(REQUEST.SET_VRING_ADDR.id, 1, new Uint8Array(40)).subarray(0, 30));
    peer.close();
  }),
  malformed('BE-MALF-009', 'request 0', async (_t, peer) => {
    await peer.sendBytes(bytes(0, 1));
  }),
  malformed('BE-MALF-010', 'request 0xffffffff', async (_t, peer) => {
    await peer.sendBytes(bytes(0xffff_ffff, 1, new Uint8Array(8)));
  }),
  malformed('BE-MALF-011', 'a message with 100 fds', async (t, peer) => {
    const fd = t.own(createEventfd('one of many'));
    const fds = Array.from({ length: 100 }, () => fd.number);
    await peer.sendBytes(bytes(REQUEST.SET_MEM_TABLE.id, 1, new Uint8Array(40)), fds);
  }),
  malformed('BE-MALF-012', 'fds behind the first byte', async (t, peer) => {
    const fd = t.own(createEventfd('late'));
    const message = bytes(REQUEST.SET_VRING_KICK.id, 1, new Uint8Array(8));
    await peer.sendBytes(message.subarray(0, 12));
    await peer.sendBytes(message.subarray(12), [fd.number]);
  }),
  malformed('BE-MALF-013', '4 KiB of noise', async (_t, peer) => {
    let x = 1;
    const noise = Uint8Array.from({ length: 4096 }, () => {
      x = (Math.imul(x, 1103515245) + 12345) >>> 0;
      return x >>> 16;
    });
    await peer.sendBytes(noise);
  }),
  malformed('BE-MALF-014', 'a ring index of 0xffffffff in every message', async (_t, peer) => {
    const payload = new Uint8Array(8).fill(0xff);
    const ids = [
      REQUEST.SET_VRING_ENABLE.id,
      REQUEST.SET_VRING_BASE.id,
      REQUEST.SET_VRING_NUM.id,
      REQUEST.GET_VRING_BASE.id,
    ];
    for (const id of ids) await peer.sendBytes(bytes(id, 1, payload));
  }),
  malformed('BE-MALF-015', 'thirty connections that end at once', async (t, peer) => {
    peer.close();
    for (let n = 0; n < 30; n++) (await t.connect()).close();
  }),
];
