/** Uplinks in the plane, where the kernel watches no more descriptors. */
import assert from 'node:assert/strict';
import { after, afterEach, beforeEach, test } from 'node:test';
import { SysError } from '../../base/errors.ts';
import { PrivateMemory } from '../../memory/index.ts';
import type { PlaneEvent } from '../../runtime/data-plane.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../../switch/index.ts';
import { createEventfd } from '../../sys/eventfd.ts';
import { PacketPlane, PacketSockets, TAP_SCRATCH_BYTES } from '../../uplinks/index.ts';
import { enterVeth, indexOf, ip, makeFrame, Sender } from '../../uplinks/veth-fixture.ts';
import type { NetPortStatus } from './net-commands.ts';
import { createPlane, type NetPlane } from './net-plane.ts';
import { REST_TOKEN } from './rest-timer.ts';

const netns = `vring-unwatched-${process.pid}`;
const skip = enterVeth(netns, 1500);
if (skip !== false) console.log(`SKIPPED, uplinks that are not watched are not tested: ${skip}`);
after(() => {
  if (skip === false) ip('netns', 'del', netns);
});

const SPIN_MS = 0.5;
const SETTINGS = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: false } as const;

let plane: NetPlane;
let memory: PrivateMemory;
let events: PlaneEvent[];
let watched: Map<number, number>;
/** The kernel watches nothing but the timer. */
let isFull: boolean;

beforeEach(() => {
  memory = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES + TAP_SCRATCH_BYTES);
  events = [];
  watched = new Map();
  isFull = false;
  plane = createPlane({
    watch: (fd, token) => {
      if (isFull && token !== REST_TOKEN) {
        throw new SysError('epoll_ctl(ADD)', 28, 'ENOSPC', `fd ${fd}`);
      }
      watched.set(fd, token);
    },
    unwatch: (fd) => assert.ok(watched.delete(fd), `${fd} is watched`),
    emit: (event) => void events.push(event),
    spinMs: SPIN_MS,
    options: {
      macTable: MacTable.create().memory,
      counters: new SharedArrayBuffer(COUNTERS_BYTES),
      scratchAt: memory.offset,
    },
  }) as NetPlane;
});

afterEach(() => {
  plane.close();
  memory.close();
});

/** Rounds until nothing is awake. */
function pollOut(): void {
  for (let tries = 0; plane.awake > 0; tries++) {
    assert.ok(tries < 1_000_000, 'it goes to sleep');
    plane.poll(performance.now());
  }
}

function countersOf(port: number): Record<string, number> {
  return (plane.command('portStatus', { port }) as NetPortStatus).counters;
}

test('an uplink that cannot be watched again is looked at by a timer', { skip }, () => {
  const mine = PacketSockets.open({ interfaceIndex: indexOf('va'), queues: 1, qdiscBypass: true });
  const far = PacketSockets.open({ interfaceIndex: indexOf('vb'), queues: 1, qdiscBypass: true });
  const farPlane = new PacketPlane({ queues: far.queues, mtu: 1500, linkUp: true, accepts: 0 });
  const sender = new Sender();
  const burst = (): void => {
    const frames = Array.from({ length: 128 }, (_, i) => makeFrame(i, 100));
    assert.equal(sender.send(farPlane, frames), 128);
  };
  const uplink = { kind: 'packet', queues: [], mtu: 1500, linkUp: true, accepts: 0 };
  plane.command('addUplinkPort', { port: 0, settings: SETTINGS, uplink });
  plane.command('attachUplink', { port: 0, queues: mine.queues });
  const token = [...watched.values()].find((each) => each !== REST_TOKEN)!;
  pollOut();
  assert.equal(watched.size, 2, 'its socket and the timer');

  isFull = true;
  for (let times = 1; times <= 2; times++) {
    burst();
    plane.ready(times === 1 ? token : REST_TOKEN, performance.now());
    assert.equal(plane.awake, 1);
    pollOut();
    const { watchesRefused, rxDropNoRoom } = countersOf(0);
    assert.deepEqual([watchesRefused, rxDropNoRoom], [times, 0]);
    assert.equal(watched.size, 1, 'the timer');
  }
  const [told, ...more] = events;
  assert.deepEqual(more, [], 'said once');
  assert.ok(told?.kind === 'unwatched');
  assert.match(told.message, /ENOSPC: fd \d+; it is looked at every 1 ms .*max_user_watches/);

  isFull = false;
  plane.ready(REST_TOKEN, performance.now());
  pollOut();
  assert.equal(watched.size, 2, 'watched again');
  assert.equal(countersOf(0)['watchesRefused'], 2);
  plane.ready(REST_TOKEN, performance.now());
  assert.equal(plane.awake, 0, 'and not waiting for the timer');
  plane.command('removePort', { port: 0 });
  assert.equal(watched.size, 1);
  farPlane.close();
  mine.close();
  far.close();
});

test('an uplink that cannot be watched at first is not there', () => {
  const fd = createEventfd('a TAP');
  const tap = { fds: [fd.number], mtu: 1500, linkUp: true };
  const add = { port: 3, settings: SETTINGS, scratchAt: memory.offset + SWITCH_SCRATCH_BYTES };
  isFull = true;
  assert.throws(() => plane.command('addTapPort', { ...add, ...tap }), /ENOSPC/);
  assert.equal(plane.awake, 0);
  isFull = false;
  plane.command('addTapPort', { ...add, ...tap });
  assert.equal(watched.get(fd.number), 0, 'the first source');
  plane.command('removePort', { port: 3 });
  fd.close();
});
