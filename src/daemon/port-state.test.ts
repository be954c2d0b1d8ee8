/** A port's state on its way to another switch: two planes in this thread, no sessions. */
import { deepEqual, equal, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import { NetDevice, type NetPlaneState, parseNetState } from '../devices/net/index.ts';
import { createPlane } from '../devices/net/net-plane.ts';
import { PrivateMemory } from '../memory/index.ts';
import type { DeviceHost } from '../runtime/index.ts';
import type { DataPlaneWorker } from '../runtime/data-plane-worker.ts';
import { COUNTERS_BYTES, MacTable, readCounters, SWITCH_SCRATCH_BYTES } from '../switch/index.ts';
import { keepState, type StatefulPort } from './port-state.ts';
import type { VhostUserPortConfig, VlanConfig } from './switch-types.ts';

const PORT = 3;

function side(vlan: VlanConfig, options: { queuePairs?: number; mtu?: number } = {}) {
  const memory = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
  const macTable = MacTable.create();
  const counters = new SharedArrayBuffer(COUNTERS_BYTES);
  const plane = createPlane({
    watch: () => undefined,
    unwatch: () => undefined,
    emit: () => undefined,
    spinMs: 0,
    options: { macTable: macTable.memory, counters, scratchAt: memory.offset },
  });
  const { queuePairs = 2 } = options;
  let { mtu = 1500 } = options;
  const settings = { vlan, macLimit: 100, reflect: false };
  plane.command('addNetPort', { port: PORT, settings, queuePairs, mtu, mac: null, linkUp: true });
  const offload = { csum: true, tso: true, uso: true };
  const plain = { packed: true, mrgRxbuf: true, iommu: false, controlQueue: true };
  const device = new NetDevice({ queuePairs, mac: null, mtu, ...plain, ...offload });
  const told: boolean[] = [];
  const port: StatefulPort = {
    config: { queuePairs, mtu } as VhostUserPortConfig,
    context: {
      worker: {
        request: async (name: string, payload: unknown) => plane.command(name, payload),
      } as unknown as DataPlaneWorker,
      workers: 1,
      number: PORT,
      vlan: () => vlan,
      policy: () => 'balanced',
      learned: () => macTable.list().filter((entry) => entry.port === PORT),
      switchCounters: () => readCounters(new Float64Array(counters), PORT),
      report: () => undefined,
    },
    device,
    host: () => ({ acked: device.features }) as DeviceHost,
    mtu: () => mtu,
    offeredMtu: () => 1500,
    setMtu: (value) => (mtu = value),
    linkUp: () => true,
    loaded: (linkUp) => told.push(linkUp),
  };
  const rows = new Float64Array(counters);
  const close = () => memory.close();
  return { plane, macTable, counters: rows, port, keeper: keepState(port), told, close };
}

test('a port goes on where another one was', async (t) => {
  const trunk: VlanConfig = { mode: 'trunk', allowed: 'all', native: null };
  const old = side(trunk);
  const next = side({ mode: 'trunk', allowed: [10], native: null });
  t.after(() => (old.close(), next.close()));
  const saved = old.plane.command('saveState', { port: PORT }) as NetPlaneState;
  const filter = { ...saved.filter, promiscuous: false, own: '52:54:00:00:00:01', vlans: [10] };
  const state = { filter, activePairs: 1, counters: { ...saved.counters, faults: 2 } };
  const switchCounters = { rxFrames: 500, txFrames: 20 };
  old.plane.command('loadState', { port: PORT, state, switchCounters });
  old.macTable.learn('52:54:00:00:00:01', 10, PORT, 100);
  old.macTable.learn('52:54:00:00:00:02', 20, PORT, 100);
  old.port.setMtu(1400);
  old.port.device.address = Uint8Array.of(2, 0, 0, 0, 0, 9);

  next.macTable.learn('52:54:00:00:00:01', 10, 7, 100); // where it was until now
  next.plane.command('loadState', { port: PORT, state: saved, switchCounters: { txFrames: 90 } });
  await next.keeper.load(await old.keeper.save());

  deepEqual(next.plane.command('saveState', { port: PORT }), state);
  equal(next.macTable.lookup('52:54:00:00:00:01', 10), PORT);
  equal(next.macTable.lookup('52:54:00:00:00:02', 20), -1, 'a VLAN that the port is not in');
  const counted = readCounters(next.counters, PORT);
  deepEqual([counted.rxFrames, counted.txFrames], [500, 90], 'no counter runs back');
  equal(next.port.mtu(), 1400);
  deepEqual(next.port.device.address, Uint8Array.of(2, 0, 0, 0, 0, 9));
  deepEqual(next.told, [true]);

  await old.keeper.load(await next.keeper.save());
  equal(readCounters(old.counters, PORT).rxFrames, 500, 'there and back counts once');
});

test('what is refused changes nothing', async (t) => {
  const vlan: VlanConfig = { mode: 'access', vid: 1 };
  const old = side(vlan, { queuePairs: 4 });
  const next = side(vlan);
  t.after(() => (old.close(), next.close()));
  old.macTable.learn('52:54:00:00:00:01', 1, PORT, 100);
  const before = parseNetState(await next.keeper.save());
  await rejects(next.keeper.load(await old.keeper.save()), /0x400000, which this port lacks|pairs/);
  await rejects(next.keeper.load(new Uint8Array(0)), { code: 'ERR_VRING_STATE_FORMAT' });
  deepEqual(parseNetState(await next.keeper.save()), before);
  deepEqual(next.told, []);
});

test('RARP tells the neighbours where a guest is', async (t) => {
  const vlan: VlanConfig = { mode: 'access', vid: 5 };
  const { plane, macTable, close } = side(vlan);
  t.after(close);
  plane.command('announce', { port: PORT, mac: Uint8Array.of(0x52, 0x54, 0, 0, 0, 1) });
  equal(macTable.lookup('52:54:00:00:00:01', 5), PORT);
});
