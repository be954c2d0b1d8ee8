/** The giving side of a hand-over: until the commit, whatever fails, it goes on. */
import { deepEqual, equal, rejects, throws } from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createEventfd, type Fd, socketPair } from '../sys/index.ts';
import { ConfigError, VringError } from '../base/errors.ts';
import {
  connectSuccessor,
  expect,
  handOver,
  type HandOverSource,
  hearReport,
  sayFailed,
} from './hand-over.ts';
import { HAND_OVER_FORMAT, HandOverChannel, type SentFds } from './hand-over-channel.ts';
import { diskInput, parseDisk } from './disks/disk-input.ts';
import { mergeConfig } from './hand-over-config.ts';
import {
  type HandOverPlan,
  HandOverPlanSchema,
  HandOverStateSchema,
  parseBody,
} from './hand-over-format.ts';
import { adapterInput, parseAdapter, unitInput } from './disks/scsi-input.ts';
import type { AdapterConfig } from './disks/scsi-types.ts';
import type { SwitchConfig, VhostUserPortConfig } from './switch-types.ts';

const CONFIG = {
  control: { path: '/run/a.sock', mode: 0o660, owner: null },
  http: null,
  mac: { ageingSeconds: 300, limit: 100 },
  spinMicroseconds: 50,
  workers: 1,
  workerCores: [1],
};
const VM: VhostUserPortConfig = {
  name: 'vm0',
  kind: 'vhost-user',
  path: '/run/vm0.sock',
  mode: 'server',
  socketOwner: null,
  socketMode: 0o660,
  queuePairs: 1,
  mac: null,
  packed: true,
  mrgRxbuf: true,
  iommu: false,
  postcopy: false,
  vlan: { mode: 'access', vid: 1 },
  offload: { csum: true, tso: true, uso: true },
  mtu: 1500,
  reflect: false,
  macLimit: 1024,
};

const DISK = parseDisk({ name: 'd', socket: '/run/d.sock', layers: ['/srv/d.img'] });
const DISK_PLAN = {
  config: diskInput(DISK),
  origin: 'api' as const,
  facts: { sizeBytes: 4096, readOnly: false },
  memory: null,
};

const E = { name: 'e', socket: '/run/e', layers: ['/srv/e.img'] };

function planOf(fds: SentFds, control: Fd): HandOverPlan {
  const config = VM as HandOverPlan['ports'][number]['config'];
  const port = { number: 0, config, linkUp: true, tap: null, memory: null };
  return {
    version: '1',
    pid: 1,
    config: { ...CONFIG, stateFile: null, policy: 'balanced' },
    control: fds.add(control),
    ports: [port],
    disks: [DISK_PLAN],
    adapters: [],
    events: [],
  };
}

/** A switch that says what it was asked, and a channel to it. */
function fixture(broken: Partial<HandOverSource> = {}) {
  const [near, far] = socketPair();
  const calls: string[] = [];
  const control = createEventfd('control');
  const source: HandOverSource = {
    rehearse: async () => undefined,
    plan: planOf,
    suspend: async () => {
      calls.push('suspend');
      return {
        state: { stoppedAtMs: 5, ports: [], disks: [], adapters: [] },
        macs: Uint8Array.of(1, 2, 3, 4),
      };
    },
    resume: async () => void calls.push('resume'),
    surrender: async () => void calls.push('surrender'),
    exclusively: (work) => work(),
    report: () => undefined,
    ...broken,
  };
  const old = new HandOverChannel(near);
  const successor = new HandOverChannel(far);
  const outcome = handOver(old, source, control);
  outcome.catch(() => undefined);
  const close = () => (old.close(), successor.close(), control.close());
  return { calls, old, successor, outcome, close };
}

test('a successor that does its part gets the switch', async (t) => {
  const { calls, old, successor, outcome, close } = fixture();
  t.after(close);
  const prepared = await expect(successor, 'prepare', 1000);
  const plan = parseBody(HandOverPlanSchema, 'prepare', prepared.body);
  equal(plan.ports[0]!.config.name, 'vm0');
  prepared.fds.take(plan.control, 'the control socket').close();
  deepEqual(calls, [], 'it serves on while the successor prepares');
  await successor.send('ready', null);
  const last = await expect(successor, 'switch', 1000);
  equal(parseBody(HandOverStateSchema, 'switch', last.body).stoppedAtMs, 5);
  deepEqual(last.blob, Uint8Array.of(1, 2, 3, 4));
  await successor.send('restored', null);
  await expect(successor, 'commit', 1000);
  await outcome;
  deepEqual(calls, ['suspend']);
  await successor.send('running', { pauseMs: 3.5 });
  equal(await hearReport(old), 3.5);
});

test('a successor that cannot prepare leaves the switch alone', async (t) => {
  const { calls, successor, outcome, close } = fixture();
  t.after(close);
  await expect(successor, 'prepare', 1000);
  await sayFailed(successor, new ConfigError('ports vm0.queuePairs', 'is 2 and was 1'));
  await rejects(outcome, { code: 'ERR_VRING_CONFIG', message: /queuePairs: is 2 and was 1/ });
  deepEqual(calls, []);
});

test('whatever fails while nobody serves, the switch goes on', async (t) => {
  const until = async (kind: string) => {
    const made = fixture();
    t.after(made.close);
    (await expect(made.successor, 'prepare', 1000)).fds.close();
    if (kind === 'prepare') return made;
    await made.successor.send('ready', null);
    await expect(made.successor, 'switch', 1000);
    return made;
  };
  const dead = await until('switch');
  dead.successor.close();
  await rejects(dead.outcome, /the other process is gone/);
  deepEqual(dead.calls, ['suspend', 'resume']);

  const failing = await until('switch');
  await sayFailed(failing.successor, new VringError('ERR_VRING_MEMORY_FD', 'region 1: no'));
  await rejects(failing.outcome, { code: 'ERR_VRING_MEMORY_FD', message: 'region 1: no' });
  deepEqual(failing.calls, ['suspend', 'resume']);

  const confused = await until('switch');
  await confused.successor.send('ready', null);
  await rejects(confused.outcome, /"ready" came, expected "restored"/);
  deepEqual(confused.calls, ['suspend', 'resume']);

  const early = await until('prepare');
  early.successor.close();
  await rejects(early.outcome, /gone/);
  deepEqual(early.calls, []);
});

test('a switch that cannot stand still goes on, and says so', async (t) => {
  const suspend = (): never => {
    throw new VringError('ERR_VRING_WORKER', 'the worker ended');
  };
  const { calls, old, successor, outcome, close } = fixture({ suspend });
  t.after(close);
  (await expect(successor, 'prepare', 1000)).fds.close();
  await successor.send('ready', null);
  await rejects(outcome, /the worker ended/);
  deepEqual(calls, ['resume']);
  await sayFailed(old, await outcome.catch((error: unknown) => error));
  await rejects(expect(successor, 'switch', 1000), { code: 'ERR_VRING_WORKER' });
});

test('another format is refused before anything is connected', () => {
  const request = { socket: '/nowhere', format: HAND_OVER_FORMAT + 1, version: '9.9' };
  throws(() => connectSuccessor(request), {
    code: 'ERR_VRING_HAND_OVER_FORMAT',
    message: /vring 9\.9: .*format \d+, this one knows 4/,
  });
  throws(() => connectSuccessor({ ...request, format: HAND_OVER_FORMAT }), /ENOENT/);
});

test('a newer configuration keeps what runs, adds what is new, and may not change a device', () => {
  const control = createEventfd('control');
  const plan = planOf({ add: () => 0 } as unknown as SentFds, control);
  control.close();
  const newer: SwitchConfig = {
    ...CONFIG,
    spinMicroseconds: 10,
    ports: [
      { ...VM, vlan: { mode: 'access', vid: 7 }, socketMode: 0o600 },
      { ...VM, name: 'vm1', path: '/run/vm1.sock' },
    ],
  };
  const merged = mergeConfig(plan, newer);
  equal(merged.config.spinMicroseconds, 10);
  deepEqual(merged.taken.ports[0]!.config.vlan, { mode: 'access', vid: 7 });
  deepEqual(
    merged.added.ports.map(({ name }) => name),
    ['vm1'],
  );
  const { ports, disks, adapters } = plan;
  deepEqual(mergeConfig(plan, null).config.workerCores, [1]);
  deepEqual(mergeConfig(plan, null).taken, { ports, disks, adapters });
  const kept = mergeConfig(plan, { ...newer, ports: [] });
  deepEqual([kept.taken.ports.length, kept.added.ports.length], [1, 0], 'no file ends a guest');
  deepEqual([kept.taken.disks, kept.added.disks], [disks, []]);
  const changed = { ...newer, ports: [{ ...VM, queuePairs: 2 }] };
  throws(() => mergeConfig(plan, changed), /port vm0: queuePairs is 2 and was 1/);
  const vduse = { ...ports[0]!.config, name: 'v0', kind: 'vduse', device: 'net0' };
  const lone = { ...ports[0]!, config: vduse as HandOverPlan['ports'][number]['config'] };
  throws(
    () => mergeConfig({ ...plan, ports: [...ports, lone] }, { ...newer, workers: 2 }),
    /port v0 goes on, but a vduse port .* 2 workers/,
  );

  const other = { ...DISK, name: 'e', socket: '/run/e.sock' };
  const limited = { ...newer, disks: [{ ...DISK, limits: { iops: 5 } }, other] };
  const { taken, added } = mergeConfig(plan, limited);
  equal(taken.disks[0]!.origin, 'config', 'the file names it now');
  deepEqual([taken.disks[0]!.config['limits'], added.disks], [{ iops: 5 }, [other]]);
  const elsewhere = { ...newer, disks: [{ ...DISK, layers: parseDisk(E).layers }] };
  throws(() => mergeConfig(plan, elsewhere), /disk d: layers is .*e\.img.* cannot change; .* disk/);
});

test('units of a newer configuration are attached; an adapter that runs stays as it is', () => {
  const unit = (place: string): object => ({ unit: place, layers: ['memory:1M'] });
  const adapter = (units: object[], more: object = {}): AdapterConfig => {
    return parseAdapter({ name: 'a', socket: '/run/a', units, ...more });
  };
  const [runs, api] = adapter([unit('0:0'), unit('0:1')]).units;
  const facts = { sizeBytes: 2 ** 20, readOnly: false };
  const plan = {
    ...planOf({ add: () => 0 } as unknown as SentFds, -1 as unknown as Fd),
    adapters: [
      {
        config: adapterInput(adapter([])),
        origin: 'config' as const,
        works: true,
        memory: null,
        units: [runs!, api!].map((one) => {
          return { config: unitInput(one), origin: 'api' as const, facts };
        }),
      },
    ],
  };
  const limited = { ...unit('0:0'), limits: { iops: 5 } };
  const newer = (...scsi: AdapterConfig[]): SwitchConfig => ({ ...CONFIG, ports: [], scsi });
  const other = parseAdapter({ name: 'b', socket: '/run/b' });
  const merged = mergeConfig(plan, newer(adapter([limited, unit('3:0')]), other));
  const [taken] = merged.taken.adapters;
  deepEqual(
    taken!.units.map(({ config, origin }) => [config['unit'], origin, config['limits']]),
    [
      ['0:0', 'config', { iops: 5 }],
      ['0:1', 'api', null],
    ],
  );
  deepEqual(merged.added.adapters, [other]);
  deepEqual(merged.added.units, [{ adapter: 'a', units: adapter([unit('3:0')]).units }]);
  deepEqual(mergeConfig(plan, newer()).taken.adapters, plan.adapters, 'no file ends a guest');
  const wider = newer(adapter([], { queues: 2 }));
  throws(
    () => mergeConfig(plan, wider),
    /adapter a: queues is 2 and was 1, .* SCSI adapter cannot/,
  );
  const moved = newer(adapter([{ unit: '0:1', layers: ['memory:2M'] }]));
  throws(() => mergeConfig(plan, moved), /disk a:0:1: layers is .* a running disk cannot change/);
});

test('a plan that is none is refused with the place', () => {
  throws(() => parseBody(HandOverPlanSchema, 'prepare', { version: 1 }), /"prepare": version: /);
});

test('a process of another user is refused', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('needs root, to be somebody else');
  const folder = mkdtempSync(join(tmpdir(), 'vring-hand-over-'));
  chmodSync(folder, 0o777);
  const socket = join(folder, 'socket');
  const listen = `require('net').createServer().listen(${JSON.stringify(socket)}, () => console.log())`;
  const child = spawn(process.execPath, ['-e', listen], { uid: 65534, gid: 65534, cwd: '/' });
  t.after(() => (child.kill(), rmSync(folder, { recursive: true })));
  await once(child.stdout, 'data');
  throws(() => connectSuccessor({ socket, format: HAND_OVER_FORMAT, version: '1' }), {
    code: 'ERR_VRING_HAND_OVER',
    message: /belongs to user 65534, this switch to 0/,
  });
});
