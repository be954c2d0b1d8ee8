import { deepEqual, equal, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import type { VringAttach } from './data-plane.ts';
import { type GroupMember, LOADS_BYTES, WorkerGroup } from './worker-group.ts';

test('a queue that its new worker cannot take goes on at the old one', async () => {
  const attached: string[] = [];
  const member = (name: number): GroupMember =>
    ({
      attachVring: async ({ config }: VringAttach) => {
        if (name === 1) throw new Error('no room');
        attached.push(`${name}: ${config.base}`);
      },
      request: async () => ({ base: 7, started: true, counters: {} }),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    count: 2,
    start: member,
    isShared: () => false,
    ruleOf: () => ({ to: 'each' }),
    onEvent: () => undefined,
    loads: new SharedArrayBuffer(LOADS_BYTES),
    balanceMs: 0,
  });
  await group.attachVring({ device: 3, index: 1, config: { base: 0 } } as unknown as VringAttach);
  await rejects(group.move(3, 1, 1), /no room/);
  deepEqual(attached, ['0: 0', '0: 7']);
  equal(group.queues()[0]?.member, 0);
  equal(group.moves, 0);
  await group.close();
});
