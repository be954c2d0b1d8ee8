import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../memory/index.ts';
import type { VringAttach } from '../runtime/index.ts';
import { MacTable } from '../switch/index.ts';
import { VIRTIO_NET_F_MQ } from '../wire/virtio-net.ts';
import { VIRTIO_F_VERSION_1, featureSet } from '../wire/virtio.ts';
import { SwitchWorkers } from './switch-workers.ts';

const PAIRS = 2;

test('a control queue belongs to one worker, wherever the driver has it', async () => {
  const memory = PrivateMemory.allocate(65536);
  const workers = new SwitchWorkers({
    count: 2,
    macTable: MacTable.create({ shared: true }).memory,
    spinMs: 0,
    queuePairsOf: () => PAIRS,
    onEvent: () => undefined,
    onRefused: ({ cause }) => assert.fail(cause),
    onCrash: (error) => assert.fail(error),
  });
  const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: false } as const;
  const port = { port: 0, settings, queuePairs: PAIRS, mtu: 1500, mac: null, linkUp: true };
  await workers.group.request('addNetPort', port);
  const ownedOf = async (features: number[]): Promise<number[]> => {
    for (let index = 0; index <= 2 * PAIRS; index++) {
      await workers.group.attachVring(attach(memory, index, features));
    }
    const owned = workers.group.queues().map(({ index }) => index);
    for (let index = 0; index <= 2 * PAIRS; index++) await workers.group.detachVring(0, index);
    return owned;
  };
  try {
    assert.deepEqual(await ownedOf([VIRTIO_NET_F_MQ]), [1, 3, 4]);
    assert.deepEqual(await ownedOf([]), [1, 2, 3], '5.1.2: queue 2 without VIRTIO_NET_F_MQ');
  } finally {
    await workers.close();
    memory.close();
  }
});

/** A ring that nobody kicks and nothing is in. */
function attach(memory: PrivateMemory, index: number, features: number[]): VringAttach {
  const at = memory.offset + index * 8192;
  const offsets = { descOffset: at, availOffset: at + 1024, usedOffset: at + 4096 };
  const layout = { size: 16, packed: false, eventIdx: false, indirect: false, inOrder: false };
  const map = { count: 0, start: new Float64Array(), end: new Float64Array() };
  return {
    device: 0,
    index,
    config: { ...layout, ...offsets, base: 0 },
    map: { ...map, delta: new Float64Array() },
    regions: [],
    features: featureSet(VIRTIO_F_VERSION_1, ...features),
    kickFd: -1,
    callFd: -1,
    injectedQueue: -1,
    errFd: -1,
    enabled: true,
    iotlb: false,
    log: null,
    inflight: null,
    drain: true,
  };
}
