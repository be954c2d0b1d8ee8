import { deepEqual, equal, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import type { PlaneEvent, VringAttach } from './data-plane.ts';
import { type GroupMember, LOADS_BYTES, WorkerGroup } from './worker-group.ts';

/** Two members; the second takes no ring, and a ring stands at `released` when it is let go of. */
function groupOf(attached: string[], released: number | null): WorkerGroup {
  const member = (name: number): GroupMember =>
    ({
      attachVring: async ({ config }: VringAttach) => {
        if (name === 1) throw new Error('no room');
        attached.push(`${name}: ${config.base}`);
      },
      request: async () =>
        released === null ? null : { base: released, started: true, counters: {} },
      close: async () => undefined,
    }) as unknown as GroupMember;
  return new WorkerGroup({
    count: 2,
    start: member,
    isShared: () => false,
    ruleOf: () => ({ to: 'each' }),
    onEvent: () => undefined,
    loads: new SharedArrayBuffer(LOADS_BYTES),
    balanceMs: 0,
  });
}

const RING = { device: 3, index: 1, config: { base: 0 } } as unknown as VringAttach;

test('a queue that its new worker cannot take goes on at the old one', async () => {
  const attached: string[] = [];
  const group = groupOf(attached, 7);
  await group.attachVring(RING);
  await rejects(group.move(3, 1, 1), /no room/);
  deepEqual(attached, ['0: 0', '0: 7']);
  equal(group.queues()[0]?.member, 0);
  equal(group.moves, 0);
  await group.close();
});

test('a queue that is not let go of stays where it is', async () => {
  const attached: string[] = [];
  const group = groupOf(attached, null);
  await group.attachVring(RING);
  equal(await group.move(3, 1, 1), false);
  deepEqual(attached, ['0: 0']);
  equal(group.queues()[0]?.member, 0);
  equal(group.moves, 0);
  await group.close();
});

test('what a driver set is passed on, and who told it hears when all know', async () => {
  const asked: unknown[] = [];
  const tell: ((event: PlaneEvent) => void)[] = [];
  let known = (): void => undefined;
  const member = (name: number): GroupMember =>
    ({
      request: async (op: string, payload: unknown) => {
        asked.push([name, op, payload]);
        if (name === 2) await new Promise<void>((resolve) => (known = resolve));
      },
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    count: 3,
    start: (name, onEvent) => {
      tell.push(onEvent);
      return member(name);
    },
    isShared: () => false,
    ruleOf: () => ({ to: 'each' }),
    onEvent: () => undefined,
    loads: new SharedArrayBuffer(LOADS_BYTES),
    balanceMs: 0,
  });
  tell[1]!({ kind: 'driver-state', device: 5, index: -1, state: 'new' });
  await setImmediate();
  const loaded = { port: 5, state: 'new' };
  deepEqual(asked.splice(0), [
    [0, 'loadDriver', loaded],
    [2, 'loadDriver', loaded],
  ]);
  known();
  await setImmediate();
  deepEqual(asked, [[1, 'driverHeard', { port: 5 }]]);
  await group.close();
});

test('a queue that must stay does not keep the others where they are', async () => {
  const loads = new SharedArrayBuffer(LOADS_BYTES);
  const slots = new Map<number, number>();
  const member = (): GroupMember =>
    ({
      attachVring: async ({ index, loadSlot }: VringAttach) => slots.set(index, loadSlot!),
      request: async () => ({ base: 0, started: true, counters: {} }),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    count: 2,
    start: member,
    isShared: () => false,
    ruleOf: () => ({ to: 'each' }),
    onEvent: () => undefined,
    loads,
    balanceMs: 5,
  });
  for (const index of [1, 3, 5, 7]) {
    await group.attachVring({ ...RING, index, iotlb: index === 1 });
  }
  const owned = (): [number, number][] =>
    group.queues().map(({ index, member: owner }) => [index, owner]);
  deepEqual(owned(), [[1, 0], [3, 1], [5, 0], [7, 1]]); // prettier-ignore
  const cells = new Float64Array(loads);
  cells[slots.get(5)!] = 900;
  cells[slots.get(1)!] = 1000;
  for (let tries = 0; group.moves === 0 && tries < 400; tries++) await setTimeout(5);
  deepEqual(owned(), [[1, 0], [3, 1], [5, 1], [7, 1]]); // prettier-ignore
  await group.close();
});
