import { deepEqual, equal, fail, match, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { DataPlaneWorker } from './data-plane-worker.ts';
import type { PlaneEvent, VringAttach } from './data-plane.ts';
import { type GroupMember, type GroupRule, LOADS_BYTES, WorkerGroup } from './worker-group.ts';

/** What a group is told of where nothing happens to it; of a crash the test fails. */
const UNEVENTFUL = {
  isShared: () => false,
  ruleOf: (): GroupRule => ({ to: 'each' }),
  onEvent: () => undefined,
  onCrash: (error: Error) => fail(error),
  onRefused: () => undefined,
};

/**
 * Two members; the second takes no ring, and the first, let go of a ring that stands at 7, so many.
 */
function groupOf(options: { takesBack?: number; releases?: boolean } = {}) {
  let { takesBack = 9 } = options;
  const { releases = true } = options;
  const attached: string[] = [];
  const refused: string[] = [];
  const member = (name: number): GroupMember =>
    ({
      attachVring: async ({ config }: VringAttach) => {
        if (name === 1) throw new Error('no room');
        if (config.base > 0 && takesBack-- === 0) throw new Error('none here either');
        attached.push(`${name}: ${config.base}`);
      },
      detachVring: async () => 1000 + name,
      request: async () => (releases ? { base: 7, started: true, counters: {} } : null),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    ...UNEVENTFUL,
    count: 2,
    start: member,
    onRefused: ({ device, index, from, to, cause, lost }) =>
      refused.push(`${device}:${index} ${from}-${to} ${cause.message}${lost ? ', lost' : ''}`),
    loads: new SharedArrayBuffer(LOADS_BYTES),
    balanceMs: 0,
  });
  return { group, attached, refused };
}

const RING = { device: 3, index: 1, config: { base: 0 } } as unknown as VringAttach;

test('a queue that its new worker cannot take goes on at the old one, and is told once', async () => {
  const { group, attached, refused } = groupOf();
  await group.attachVring(RING);
  for (let tries = 0; tries < 2; tries++) await rejects(group.move(3, 1, 1), /no room/);
  deepEqual(attached, ['0: 0', '0: 7', '0: 7']);
  deepEqual(refused, ['3:1 0-1 no room']);
  equal(group.queues()[0]?.member, 0);
  deepEqual(group.moves(), [
    { taken: 0, refused: 0 },
    { taken: 0, refused: 2 },
  ]);
  equal(await group.detachVring(3, 1), 1000);
  await group.attachVring(RING);
  await rejects(group.move(3, 1, 1), /no room/);
  equal(refused.length, 2, 'another ring');
  await group.close();
});

test('a queue that nobody can take keeps its place for who attaches it anew', async () => {
  const { group, attached, refused } = groupOf({ takesBack: 0 });
  await group.attachVring(RING);
  await rejects(group.move(3, 1, 1), /no room/);
  deepEqual(refused, ['3:1 0-1 no room, lost']);
  equal(await group.move(3, 1, 1), false, 'it is nowhere');
  equal(await group.detachVring(3, 1), 7);
  await group.attachVring(RING);
  deepEqual(attached, ['0: 0', '0: 0']);
  await group.close();
});

test('a queue that is not let go of stays where it is', async () => {
  const { group, attached } = groupOf({ releases: false });
  await group.attachVring(RING);
  equal(await group.move(3, 1, 1), false);
  deepEqual(attached, ['0: 0']);
  equal(group.queues()[0]?.member, 0);
  deepEqual(group.moves()[1], { taken: 0, refused: 0 });
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
    ...UNEVENTFUL,
    count: 3,
    start: (name, { onEvent }) => {
      tell.push(onEvent);
      return member(name);
    },
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
  let busy = (): void => undefined;
  const loads = new SharedArrayBuffer(LOADS_BYTES);
  const slots = new Map<number, number>();
  const member = (_name: number): GroupMember =>
    ({
      attachVring: async ({ index, loadSlot }: VringAttach) => slots.set(index, loadSlot!),
      request: async () => ({ base: 0, started: true, counters: {} }),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    ...UNEVENTFUL,
    count: 2,
    start: (name, { onBusy }) => {
      busy = onBusy;
      return member(name);
    },
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
  busy();
  for (let tries = 0; group.moves()[1]!.taken === 0 && tries < 400; tries++) await setTimeout(5);
  deepEqual(owned(), [[1, 0], [3, 1], [5, 1], [7, 1]]); // prettier-ignore
  await group.close();
});

test('a queue that a worker refused stays for a while, and others move', async () => {
  let busy = (): void => undefined;
  const loads = new SharedArrayBuffer(LOADS_BYTES);
  const cells = new Float64Array(loads);
  const slots = new Map<number, number>();
  const member = (name: number): GroupMember =>
    ({
      attachVring: async ({ index, loadSlot }: VringAttach) => {
        if (name === 1 && index === 1) throw new Error('no room');
        slots.set(index, loadSlot!);
      },
      request: async () => ({ base: 0, started: true, counters: {} }),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    ...UNEVENTFUL,
    count: 2,
    start: (name, { onBusy }) => {
      busy = onBusy;
      return member(name);
    },
    onRefused: ({ index }) => equal(index, 1),
    loads,
    balanceMs: 5,
  });
  for (const index of [1, 3, 5, 7]) await group.attachVring({ ...RING, index });
  const moved = async (): Promise<void> => {
    for (let tries = 0; group.moves()[1]!.taken === 0 && tries < 400; tries++) {
      busy();
      cells[slots.get(1)!]! += 1000;
      cells[slots.get(5)!]! += 1000;
      await setTimeout(5);
    }
  };
  await moved();
  deepEqual(group.moves()[1], { taken: 1, refused: 1 });
  const owners = group.queues().map(({ member: owner }) => owner);
  deepEqual(owners, [0, 1, 1, 1]);
  await group.close();
});

test('while all are asked of rings none moves, and one that does is waited for', async () => {
  let busy = (): void => undefined;
  const loads = new SharedArrayBuffer(LOADS_BYTES);
  const cells = new Float64Array(loads);
  const steps: string[] = [];
  const resume = new Map<string, () => void>();
  const step = async (name: string): Promise<void> => {
    steps.push(name);
    await new Promise<void>((resolve) => resume.set(name, resolve));
  };
  const slots = new Map<number, number>();
  const member = (name: number): GroupMember =>
    ({
      attachVring: async ({ index, loadSlot, resumed }: VringAttach) => {
        if (resumed) steps.push(`${index} moved to ${name}`);
        slots.set(index, loadSlot!);
      },
      request: async (op: string) => {
        await step(op);
        return op === 'releaseVring' ? { base: 0, started: true, counters: {} } : name;
      },
      close: async () => undefined,
    }) as unknown as GroupMember;
  const group = new WorkerGroup({
    ...UNEVENTFUL,
    count: 2,
    start: (name, { onBusy }) => {
      busy = onBusy;
      return member(name);
    },
    ruleOf: () => ({ to: 'first', still: true }),
    loads,
    balanceMs: 5,
  });
  let loaded = [1, 5];
  const until = async (count: number, most = 400): Promise<void> => {
    for (let tries = 0; tries < most && steps.length < count; tries++) {
      busy();
      for (const index of loaded) cells[slots.get(index)!]! += 1000;
      await setTimeout(5);
    }
  };
  for (const index of [1, 3, 5, 7]) await group.attachVring({ ...RING, index });
  await until(1);
  const asked = group.request('status', null);
  await setTimeout(30);
  deepEqual(steps, ['releaseVring'], 'the question waits');
  resume.get('releaseVring')!();
  await until(3);
  const [, moved, ...after] = steps;
  match(moved!, /^[15] moved to 1$/);
  deepEqual(after, ['status']);
  loaded = [Number(moved![0]), 3]; // both at the second
  await until(4, 20);
  equal(steps.length, 3, 'no move, with all reason for one');
  resume.get('status')!();
  equal(await asked, 0);
  await until(4);
  equal(steps[3], 'releaseVring');
  resume.get('releaseVring')!();
  await group.close();
});

/** Members that say what they are asked; those of `failing` fail at it once: `'1 add'`. */
function tellingGroup(count: number, failing: readonly string[], rule: GroupRule) {
  const asked: string[] = [];
  const left = new Set(failing);
  const tell = async <T>(what: string, answer: T): Promise<T> => {
    asked.push(what);
    if (left.delete(what)) throw new Error(`no ${what}`);
    return answer;
  };
  const loads = new SharedArrayBuffer(LOADS_BYTES);
  const member = (name: number): GroupMember =>
    ({
      request: (op: string, payload: unknown) =>
        tell(`${name} ${op}`, op === 'count' ? 10 + name : payload),
      attachVring: ({ loadSlot }: VringAttach) =>
        tell(`${name} attach`, undefined).finally(() => slots.push(loadSlot ?? -1)),
      enableVring: () => tell(`${name} enable`, undefined),
      detachVring: () => tell(`${name} detach`, 100 + name),
      close: async () => undefined,
    }) as unknown as GroupMember;
  const slots: number[] = [];
  const group = new WorkerGroup({
    ...UNEVENTFUL,
    count,
    start: member,
    isShared: ({ index }) => index % 2 === 0,
    ruleOf: () => rule,
    loads,
    balanceMs: 0,
  });
  return { group, asked, slots };
}

test('what one worker refuses the others give back, and it can be tried again', async () => {
  const rule: GroupRule = { to: 'each', undo: 'remove' };
  const { group, asked } = tellingGroup(3, ['1 add'], rule);
  await rejects(group.request('add', 5), /no 1 add/);
  deepEqual(asked.splice(0), ['0 add', '1 add', '2 add', '0 remove', '2 remove']);
  equal(await group.request('add', 5), 5);
  deepEqual(asked, ['0 add', '1 add', '2 add']);
  const last = tellingGroup(3, ['0 add'], { ...rule, to: 'first-last' });
  await rejects(last.group.request('add', 5), /no 0 add/);
  deepEqual(last.asked, ['1 add', '2 add', '0 add', '1 remove', '2 remove']);
});

test('what ends does so in all workers, also when the first one fails', async () => {
  const { group, asked } = tellingGroup(3, ['0 remove'], { to: 'first-first' });
  await rejects(group.request('remove', 5), /no 0 remove/);
  deepEqual(asked.splice(0), ['0 remove', '1 remove', '2 remove']);
  equal(await group.request('remove', 5), 5);
});

test('what is asked can depend on what each worker has', async () => {
  const { group, asked } = tellingGroup(2, [], {
    to: 'each',
    before: 'count',
    payload: (part: number, member, states) => [part, member, states],
    merge: (results) => results,
  });
  deepEqual(await group.request('load', 5), [
    [5, 0, [10, 11]],
    [5, 1, [10, 11]],
  ]);
  deepEqual(asked, ['0 count', '1 count', '0 load', '1 load']);
});

test('a ring that is to be in all workers is in none where one cannot take it', async () => {
  const { group, asked } = tellingGroup(2, ['1 attach'], { to: 'each' });
  const ring = { ...RING, index: 2, enabled: true, config: { base: 6 } } as VringAttach;
  await rejects(group.attachVring(ring), /no 1 attach/);
  deepEqual(asked.splice(0), ['0 attach', '1 attach', '0 detach', '1 detach']);
  equal(await group.detachVring(3, 2), 6, 'it stands where it stood');
  await group.attachVring(ring);
  deepEqual(asked, ['0 attach', '1 attach', '0 enable', '1 enable']);
});

test('a ring that no worker took has no place among the loads', async () => {
  const { group, slots } = tellingGroup(2, ['0 attach'], { to: 'each' });
  await rejects(group.attachVring({ ...RING, config: { base: 6 } } as VringAttach), /no 0 attach/);
  await group.attachVring({ ...RING, index: 3 });
  equal(slots[1], slots[0]);
  equal(await group.detachVring(3, 1), 6);
  await group.attachVring(RING);
  equal(slots.length, 3);
  equal(new Set(slots).size, 2, 'two rings, two places');
  deepEqual(
    group.queues().map(({ member }) => member),
    [0, 1],
  );
});

/** Real threads; two wait for the lock of the first, and nobody hears more of them. */
function threadsOf(count: number, crashes: Error[]): WorkerGroup {
  return new WorkerGroup({
    ...UNEVENTFUL,
    count,
    start: (name, context) =>
      new DataPlaneWorker({
        name: `test-plane-${name}`,
        planeModule: new URL('./test-plane.ts', import.meta.url),
        planeOptions: null,
        spinMs: 0,
        ...context,
      }),
    ruleOf: (op) => ({ to: op.startsWith('lock') ? 'first-first' : 'first' }),
    onCrash: (error) => crashes.push(error),
    loads: new SharedArrayBuffer(LOADS_BYTES),
    balanceMs: 0,
  });
}

test('a worker that ends with a lock takes those with it that wait for it', async () => {
  const crashes: Error[] = [];
  const group = threadsOf(3, crashes);
  await group.counters();
  const gone = { message: 'data-plane worker "test-plane-0" ended: a mistake of ours' };
  const waiting = group.request('lock', new Int32Array(new SharedArrayBuffer(8)));
  const answer = rejects(waiting, /another thread ended, and may have held our lock/);
  await setTimeout(50);
  equal(crashes.length, 0, 'they wait');
  await group.request('crash', null).catch(() => undefined); // its answer and its end race
  await answer;
  for (let tries = 0; crashes.length === 0 && tries < 400; tries++) await setTimeout(5);
  deepEqual(
    crashes.map(({ message }) => message),
    [gone.message],
  );
  await rejects(group.counters(), gone);
  await group.close();
});

test('a request that fails with a lock in its hands ends its worker, and so all', async () => {
  const crashes: Error[] = [];
  const group = threadsOf(2, crashes);
  await group.counters();
  const lock = new Int32Array(new SharedArrayBuffer(8));
  const gone = /"test-plane-0" ended: a mistake with a lock in our hands/;
  await rejects(group.request('lock-throw', lock), gone);
  for (let tries = 0; crashes.length === 0 && tries < 400; tries++) await setTimeout(5);
  match(crashes[0]!.message, gone);
  await rejects(group.counters(), gone);
  await group.close();
});
