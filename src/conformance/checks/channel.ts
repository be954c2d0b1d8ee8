/** The backend channel and notifications that travel as messages. */
import * as wire from '../../wire/vhost-user.ts';
import { EVENT_MESSAGE, REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { state } from '../context.ts';
import { closeAll } from '../raw-socket.ts';

const CHANNEL = wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ;
const INBAND = wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS;
const OBJECT = wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT;
const SHMEM = wire.VHOST_USER_PROTOCOL_F_SHMEM;
const SECTION = 'In-band notifications';

export const channelChecks: readonly Check[] = [
  check(
    'BE-CHAN-001',
    'The backend channel can be replaced',
    'SET_BACKEND_REQ_FD may come again; the old channel is closed.',
    'Back-end communication',
    { severity: 'should', needs: { protocol: [CHANNEL] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [CHANNEL] });
      await peer.openChannel();
      await peer.barrier('SET_BACKEND_REQ_FD again');
    },
  ),
  check(
    'BE-CHAN-002',
    'A front-end that closes the channel does not end the session',
    'The channel is optional: without it the back-end goes on serving.',
    'Back-end communication',
    { severity: 'should', level: 'full', needs: { protocol: [CHANNEL], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [CHANNEL] });
      session.peer.channel?.close();
      await t.sleep(20);
      await t.work(session);
      await session.peer.barrier('the channel was closed');
    },
  ),
  check(
    'BE-INBAND-001',
    'An in-band kick starts the ring',
    'VRING_KICK is a kick; SET_VRING_KICK is not necessary.',
    SECTION,
    { needs: { protocol: [INBAND, CHANNEL], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [INBAND, CHANNEL], kick: 'never', call: 'never' });
      t.post(session);
      await session.peer.tell(REQUEST.VRING_KICK, state(session.ring.index, 0));
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-INBAND-002',
    'Calls come in-band where there is no call fd',
    'BACKEND_VRING_CALL takes the place of the call fd, with num 0.',
    SECTION,
    { needs: { protocol: [INBAND, CHANNEL], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [INBAND, CHANNEL], kick: 'never', call: 'never' });
      t.post(session);
      await session.peer.tell(REQUEST.VRING_KICK, state(session.ring.index, 0));
      const got = await session.peer.channelRequest(t.patience.answerMs);
      if (got === null) return t.fail('no call within the time');
      closeAll(got.fds);
      if (got.request !== EVENT_MESSAGE.VRING_CALL.id) t.fail(`request ${got.request} came`);
      const { index, num } = wire.VringState.decode(got.payload);
      if (index !== session.ring.index || num !== 0) t.fail(`index ${index}, num ${num}`);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-OBJECT-001',
    'An unknown object is answered without fd',
    'GET_SHARED_OBJECT for a UUID that nobody has is a reply without an fd.',
    'Front-end message types, GET_SHARED_OBJECT',
    { needs: { protocol: [OBJECT] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [OBJECT] });
      const uuid = Uint8Array.from({ length: 16 }, (_, i) => 0xf0 + i);
      await peer.send(REQUEST.GET_SHARED_OBJECT, uuid);
      const reply = await peer.reply(REQUEST.GET_SHARED_OBJECT);
      closeAll(reply.fds);
      if (reply.fds.length > 0) t.fail('an fd came for an object that does not exist');
      await peer.barrier('after GET_SHARED_OBJECT');
    },
  ),
  check(
    'BE-SHMEM-001',
    'The number of shared memory regions is that of the sizes',
    'GET_SHMEM_CONFIG: as many of the 256 sizes are not zero as it says.',
    'Front-end message types, GET_SHMEM_CONFIG',
    { needs: { protocol: [SHMEM] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [SHMEM] });
      const answer = await peer.ask(REQUEST.GET_SHMEM_CONFIG);
      const rule = REQUEST.GET_SHMEM_CONFIG.replyPayload;
      if (rule === null || answer.length !== rule.minBytes) {
        return t.fail(`${answer.length} bytes of payload, expected 2056`);
      }
      const { count, sizes } = rule.parse('GET_SHMEM_CONFIG', answer);
      const used = sizes.filter((size) => size > 0n).length;
      if (used !== count) t.fail(`${count} regions, but ${used} sizes`);
    },
  ),
];
