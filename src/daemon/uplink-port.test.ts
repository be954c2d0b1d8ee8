import { deepEqual, equal, match, rejects } from 'node:assert/strict';
import { after, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PlaneRunner } from '../runtime/index.ts';
import type { AttachUplink } from '../devices/net/index.ts';
import { enterVeth, ip } from '../uplinks/veth-fixture.ts';
import type { PortContext } from './switch-port.ts';
import type { PacketPortConfig, UplinkPortConfig, XdpPortConfig } from './switch-types.ts';
import { UplinkPort } from './uplink-port.ts';

const netns = `vring-uplink-${process.pid}`;
const skip = enterVeth(netns, 1500);
if (skip !== false) console.log(`SKIPPED, ports of uplinks are not tested: ${skip}`);
after(() => {
  if (skip === false) ip('netns', 'del', netns);
});

const CONFIG: PacketPortConfig = {
  name: 'up',
  kind: 'packet',
  interface: 'va',
  queues: 1,
  qdiscBypass: true,
  vlan: { mode: 'access', vid: 1 },
  mtu: 1500,
  macLimit: 16,
  reflect: false,
  offload: { csum: true, tso: true, uso: true },
};

/** A port whose worker does nothing but what the test says. */
function portOf(
  answer: (op: string, payload: unknown) => void = () => undefined,
  { config = CONFIG, workers = 1 }: { config?: UplinkPortConfig; workers?: number } = {},
) {
  const asked: string[] = [];
  const reports: string[] = [];
  const request = async (op: string, payload: unknown): Promise<unknown> => {
    asked.push(op);
    answer(op, payload);
    return { counters: {} };
  };
  const context: PortContext = {
    worker: { request } as unknown as PlaneRunner,
    workers,
    number: 0,
    vlan: () => CONFIG.vlan,
    policy: () => 'balanced',
    learned: () => [],
    switchCounters: () => ({}),
    report: (kind, message) => reports.push(`${kind}: ${message}`),
  };
  const port = new UplinkPort(config, context);
  const state = () => port.status({ counters: {}, vrings: [] }).state;
  return { port, asked, reports, state };
}

async function waitFor(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds(); tries++) {
    if (tries === 200) throw new Error(`waited in vain for ${what}`);
    await sleep(10);
  }
}

/** Timers of `delayMs` that were set and neither cleared nor over. */
function watchTimers(t: TestContext, delayMs: number): Set<NodeJS.Timeout> {
  const pending = new Set<NodeJS.Timeout>();
  const { setTimeout, clearTimeout } = globalThis;
  t.mock.method(globalThis, 'setTimeout', (work: () => void, ms: number) => {
    const timer = setTimeout(() => (pending.delete(timer), work()), ms);
    if (ms === delayMs) pending.add(timer);
    return timer;
  });
  t.mock.method(globalThis, 'clearTimeout', (timer: NodeJS.Timeout) => {
    pending.delete(timer);
    clearTimeout(timer);
  });
  return pending;
}

test(
  'an interface that cannot be used is tried again once a second, whatever is new',
  {
    skip,
  },
  async (t) => {
    const retries = watchTimers(t, 1000);
    const { port, reports, state } = portOf();
    await port.open();
    ip('link', 'del', 'va');
    await waitFor('its end', () => reports.some((line) => line.includes('is gone')));
    ip('link', 'add', 'va', 'mtu', '1000', 'type', 'veth', 'peer', 'name', 'vb');
    await waitFor('a refusal', () => reports.some((line) => line.includes('an MTU of 1000')));
    for (let news = 0; news < 5; news++) {
      ip('link', 'set', 'vb', news % 2 === 0 ? 'up' : 'down');
      await sleep(20);
    }
    equal(retries.size, 1, 'one retry is to come');
    ip('link', 'set', 'vb', 'up');
    ip('link', 'set', 'va', 'mtu', '1500', 'up');
    await waitFor('the interface to be used', () => state() === 'up');
    await port.close();
    port.release();
    equal(retries.size, 0);
  },
);

test('news from before the port listened to them are not missed', { skip }, async () => {
  const { port, reports, state } = portOf((op) => {
    if (op === 'attachUplink') ip('link', 'set', 'vb', 'down');
  });
  await port.open();
  await waitFor('the carrier to be lost', () => state() === 'down');
  match(reports.at(-1)!, /^port-down: the interface va is down, or has no carrier$/);
  await port.close();
  port.release();
  ip('link', 'set', 'vb', 'up');
});

test('sockets that the worker cannot have are given up, and tried again', { skip }, async () => {
  let refusals = 0;
  const { port, asked, state } = portOf((op) => {
    if (op === 'attachUplink' && refusals++ < 2) throw new Error('no room');
  });
  await rejects(port.open(), /no room/);
  deepEqual(asked.slice(-3), ['attachUplink', 'detachUplink', 'removePort']);
  await port.adopt({ ...port.plan({} as never), linkUp: true }, {} as never);
  await port.resume();
  equal(state(), 'down');
  await waitFor('the next try', () => state() === 'up');
  await port.close();
  port.release();
});

test(
  'there are sockets for every worker, and none is left when they forget it',
  { skip },
  async () => {
    for (const [queues, workers, sockets] of [
      [1, 1, 1],
      [1, 3, 3],
      [4, 3, 4],
    ] as const) {
      const given: unknown[][] = [];
      const take = (op: string, payload: unknown): void => {
        if (op === 'attachUplink') given.push([...(payload as AttachUplink).queues]);
      };
      const { port, asked } = portOf(take, { config: { ...CONFIG, queues }, workers });
      await port.open();
      deepEqual(
        given.map(({ length }) => length),
        [sockets],
      );
      await port.close();
      equal(asked.at(-1), 'detachUplink', 'none learns an address after another forgot the port');
      port.release();
    }
  },
);

test('XDP: an interface with fewer queues than workers is refused', { skip }, async () => {
  const { qdiscBypass: _, queues: __, kind: ___, ...common } = CONFIG;
  const config: XdpPortConfig = {
    ...common,
    kind: 'xdp',
    queues: null,
    copyMode: 'auto',
    attach: 'auto',
  };
  const { port, asked } = portOf(undefined, { config, workers: 2 });
  await rejects(port.open(), {
    code: 'ERR_VRING_XDP',
    message:
      'xdp:va: the interface va has 1 queue and the switch 2 workers, each of which sends by a ' +
      'queue of its own; give it more (ethtool -L va combined 2), use packet:va, or fewer workers',
  });
  deepEqual(asked, ['addUplinkPort', 'removePort']);
  await port.close();
});

test('the loopback interface is no uplink', { skip }, async () => {
  for (const kind of ['packet', 'xdp'] as const) {
    const config = { ...CONFIG, kind, interface: 'lo' } as UplinkPortConfig;
    const { port, asked } = portOf(undefined, { config });
    await rejects(port.open(), { code: 'ERR_VRING_INTERFACE', message: /^lo is the loopback/ });
    deepEqual(asked, []);
  }
});
