import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { NetPlaneState } from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import type { VringAttach } from '../runtime/index.ts';
import { MacTable } from '../switch/index.ts';
import { VIRTIO_NET_F_MQ } from '../wire/virtio-net.ts';
import { VIRTIO_F_VERSION_1, featureSet } from '../wire/virtio.ts';
import { onlineCores } from '../sys/index.ts';
import { requirePeer } from '../../test/peers/require-peer.ts';
import { SwitchWorkers, type SwitchWorkersOptions } from './switch-workers.ts';

const PAIRS = 2;

test('a control queue belongs to one worker, wherever the driver has it', async () => {
  const memory = PrivateMemory.allocate(65536);
  const workers = start({ count: 2 });
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

test('each worker runs on its core', async () => {
  const cores = [...onlineCores()].slice(0, 2);
  const workers = start({ count: cores.length, cores });
  const pinned = (await workers.status(String)).map(({ id }) => coresOf(`vring-plane-${id}`));
  assert.deepEqual(pinned, cores.map(String));
  await workers.close();
});

test('a core that a worker may not have ends it, and says so', async () => {
  const crashes: string[] = [];
  const onCrash = (error: Error): void => void crashes.push(error.message);
  const workers = start({ count: 1, cores: [1023], onCrash });
  const refusal = /^data-plane worker "vring-plane-0" ended: sched_setaffinity.*cpu 1023/;
  await assert.rejects(workers.group.counters(), { message: refusal });
  await workers.close();
  assert.match(crashes.join(), refusal);
});

const SETTINGS = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: false } as const;
const PORT = { port: 0, settings: SETTINGS, queuePairs: 1, mtu: 1500, mac: null, linkUp: true };

test('a guest that comes back finds what was counted, and nothing twice', async () => {
  const workers = start({ count: 2 });
  await workers.group.request('addNetPort', PORT);
  const save = () => workers.group.request<NetPlaneState>('saveState', { port: 0 });
  const load = (state: NetPlaneState) =>
    workers.group.request('loadState', { port: 0, state, switchCounters: {} });
  const dropped = async () => (await save()).counters['txDropNoBuffer'];
  const fresh = await save();
  const counted = { ...fresh, counters: { ...fresh.counters, txDropNoBuffer: 5 } };
  await workers.group.request('loadDriver', { port: 0, state: counted }); // 5 in each of them
  const away = await save();
  assert.equal(away.counters['txDropNoBuffer'], 10);
  await load(away);
  assert.equal(await dropped(), 10);
  await load({ ...away, counters: { ...away.counters, txDropNoBuffer: 7 } });
  assert.equal(await dropped(), 10, 'what it has counted itself');
  await load({ ...away, counters: { ...away.counters, txDropNoBuffer: 12 } });
  assert.equal(await dropped(), 12);
  await workers.close();
});

test('a port that one worker has no descriptor for is in none', { timeout: 20_000 }, async (t) => {
  if (!requirePeer(t, 'prlimit')) return;
  const workers = start({ count: 2 });
  const power = { ...PORT, settings: { ...SETTINGS, policy: 'power' } };
  await workers.group.counters(); // both run
  const limit = (soft: string): unknown =>
    execFileSync('prlimit', ['--pid', String(process.pid), `--nofile=${soft}:`]);
  const before = /^NOFILE\D*(\d+)/m.exec(
    String(
      execFileSync('prlimit', ['--raw', '--output', 'RESOURCE,SOFT', '--pid', String(process.pid)]),
    ),
  )![1]!;
  const fds: number[] = [];
  limit('300');
  try {
    assert.throws(() => {
      for (;;) fds.push(openSync('/dev/null', 'r'));
    }, /EMFILE/);
    closeSync(fds.pop()!); // for the timer of one worker
    await assert.rejects(workers.group.request('addNetPort', power), /EMFILE/);
    closeSync(fds.pop()!);
    await workers.group.request('addNetPort', power);
  } finally {
    for (const fd of fds) closeSync(fd);
    limit(before);
    await workers.close();
  }
});

function start(options: Partial<SwitchWorkersOptions>): SwitchWorkers {
  return new SwitchWorkers({
    count: 1,
    macTable: MacTable.create({ shared: true }).memory,
    spinMs: 0,
    queuePairsOf: () => PAIRS,
    onEvent: () => undefined,
    onRefused: ({ cause }) => assert.fail(cause),
    onCrash: (error) => assert.fail(error),
    ...options,
  });
}

/** Cores of the one thread of this process that has that name. */
function coresOf(name: string): string | undefined {
  for (const task of readdirSync('/proc/self/task')) {
    const status = readFileSync(`/proc/self/task/${task}/status`, 'utf8');
    if (!status.startsWith(`Name:\t${name}\n`)) continue;
    return /^Cpus_allowed_list:\t(.*)$/m.exec(status)?.[1];
  }
  return undefined;
}

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
