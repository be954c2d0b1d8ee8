/** Looking for the next back-end, and what it must be. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { VIRTIO_F_RING_PACKED, VIRTIO_ID_NET, featureSet } from '../wire/virtio.ts';
import {
  introduceAgain,
  introduceDriver,
  protocolFeaturesOf,
  reconnect,
  type DriverSetup,
} from './attach.ts';
import { BackendKeeper, type KeeperHooks } from './backend-keeper.ts';

const FEATURES = featureSet(VIRTIO_F_RING_PACKED, 32);

const SILENT =
  'setOwner setStatus setFeatures setMemTable setVringNum setVringBase setVringAddr ' +
  'setVringEnable setVringKick setVringCall';

/** Remembers its calls; ends when told. */
class FakeBackend {
  readonly calls: string[] = [];
  readonly asBackend: VhostBackend;
  features = FEATURES;
  vrings = 2;
  end!: (reason: Error | null) => void;

  constructor() {
    const closed = new Promise<Error | null>((resolve) => (this.end = resolve));
    const say =
      (name: string) =>
      async (...args: unknown[]) => {
        this.calls.push([name, ...args.map(String)].join(' '));
        if (name === 'close') this.end(null);
      };
    this.asBackend = {
      description: 'fake',
      closed,
      getFeatures: async () => this.features,
      getQueueNum: async () => this.vrings,
      close: say('close'),
      ...Object.fromEntries(SILENT.split(' ').map((name) => [name, say(name)])),
    } as unknown as VhostBackend;
  }
}

const vring = { size: 8, base: 5, descUva: 1n, availUva: 2n, usedUva: 3n, kick: 4, call: 5 };
const setup: DriverSetup = {
  deviceId: VIRTIO_ID_NET,
  features: FEATURES,
  protocolFeatures: 0n,
  vrings: 2,
  regions: () => [],
  rings: () => [{ index: 1, vring }],
  inflight: null,
};

test('a driver is introduced: features, memory, and its rings where they were', async () => {
  const backend = new FakeBackend();
  const connect = async () => backend.asBackend;
  await reconnect({ connect }, setup, new AbortController().signal);
  const names = backend.calls.map((call) => call.split(' ')[0]);
  assert.equal(
    names.join(' '),
    'setOwner setStatus setFeatures setStatus setMemTable setVringNum setVringBase ' +
      'setVringAddr setVringCall setVringEnable setVringKick setStatus',
    'the kick starts the ring, so all else of a ring comes before it',
  );
  assert.ok(backend.calls.includes('setVringBase 1 5'));
  assert.equal(backend.calls.at(-1), 'setStatus 15', 'DRIVER_OK comes last');
});

test('one that was stopped as a whole is told everything again, from a reset on', async () => {
  const backend = new FakeBackend();
  const settle = async () => void backend.calls.push('settle');
  await introduceAgain(backend.asBackend, { ...setup, settle });
  assert.deepEqual(
    backend.calls.map((call) => call.replace(/^(setStatus .*|\w+).*/, '$1')),
    ['setStatus 0', 'setStatus 3', 'setFeatures', 'setStatus 11', 'setMemTable', 'settle'],
  );
});

test('what a back-end lacks is named, and nothing else is said to it', async () => {
  const backend = new FakeBackend();
  backend.features = 1n << 32n;
  const wanted = { ...setup, protocolFeatures: (1n << 3n) | (1n << 12n) };
  await assert.rejects(introduceDriver(backend.asBackend, wanted), {
    code: 'ERR_VRING_FEATURES',
    recovery: 'fatal',
    message: /the features RING_PACKED, nor the protocol features REPLY_ACK INFLIGHT_SHMFD/,
  });
  assert.deepEqual(backend.calls, []);
  assert.equal(protocolFeaturesOf(backend.asBackend), 0n);
});

test('a back-end with fewer vrings is refused', async () => {
  const backend = new FakeBackend();
  backend.vrings = 1;
  await assert.rejects(introduceDriver(backend.asBackend, setup), {
    code: 'ERR_VRING_GUEST_QUEUES',
    message: 'fake has 1 vrings now, 2 are in use',
  });
});

test('attempts go on while nobody is there, and end with what waiting does not cure', async () => {
  const errors = [
    new VringError('ERR_VRING_SYS', 'refused', { recovery: 'retry' }),
    new VringError('ERR_VRING_PEER_CLOSED', 'gone again', { recovery: 'reconnect' }),
  ];
  const backend = new FakeBackend();
  const delays = { minDelayMs: 1, maxDelayMs: 2 };
  const { signal } = new AbortController();
  const connect = async () => {
    const error = errors.shift();
    if (error !== undefined) throw error;
    return backend.asBackend;
  };
  assert.equal(await reconnect({ connect, ...delays }, setup, signal), backend.asBackend);
  const fatal = new VringError('ERR_VRING_SOCKET_PATH', 'no socket');
  const broken = () => Promise.reject(fatal);
  await assert.rejects(reconnect({ connect: broken, ...delays }, setup, signal), fatal);
  const lacking = new FakeBackend();
  lacking.features = 0n;
  const refused = { connect: async () => lacking.asBackend, ...delays };
  await assert.rejects(reconnect(refused, setup, signal), { code: 'ERR_VRING_FEATURES' });
  assert.deepEqual(lacking.calls, ['close'], 'who cannot serve us is let go');
});

test('a search ends when its driver is closed', async () => {
  const abort = new AbortController();
  const connect = () => {
    abort.abort();
    return Promise.reject(new VringError('ERR_VRING_SYS', 'nobody', { recovery: 'retry' }));
  };
  const closed = { code: 'ERR_VRING_CLOSED' };
  await assert.rejects(reconnect({ connect }, setup, abort.signal), closed);
});

test('a keeper notices an end, and hands over to who comes next', async () => {
  const backends = [new FakeBackend(), new FakeBackend(), new FakeBackend()];
  const told: string[] = [];
  let next = 1;
  const restored = Promise.withResolvers<void>();
  const hooks: KeeperHooks = {
    setup: () => setup,
    lost: (reason) => told.push(`lost ${reason?.message ?? 'in order'}`),
    restored: async () => {
      told.push(`restored ${next}`);
      if (next === 3) restored.resolve();
    },
    failed: (error) => told.push(`failed ${error.message}`),
  };
  const connect = async () => backends[next++]!.asBackend;
  const keeper = new BackendKeeper(backends[0]!.asBackend, { connect }, hooks);
  backends[0]!.end(new Error('killed'));
  await new Promise((resolve) => setImmediate(resolve));
  backends[1]!.end(null);
  await restored.promise;
  assert.deepEqual(told, ['lost killed', 'restored 2', 'lost in order', 'restored 3']);
  assert.equal(keeper.reconnects, 2);
  assert.equal(keeper.backend, backends[2]!.asBackend);
  await keeper.close();
  assert.deepEqual(backends[2]!.calls.at(-1), 'close');
  assert.equal(told.length, 4, 'our own end is no loss');

  const last = new FakeBackend();
  void new BackendKeeper(last.asBackend, null, hooks);
  last.end(new Error('killed'));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(told.at(-1), 'failed fake: killed');
});
