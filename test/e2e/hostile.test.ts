/**
 * Front-ends that break the rules while others have traffic: their port says why it is broken,
 * the switch and everybody else go on, and the next front-end finds the port in order.
 */
import { equal, match, ok } from 'node:assert/strict';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import type { ChildProcess } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { endChild, startChild } from '../../src/vmm/index.ts';
import { Testpmd, virtioUserVdev } from '../peers/dpdk.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';

const PROGRAM = fileURLToPath(new URL('../peers/hostile-frontend.ts', import.meta.url));

class HostileFrontend {
  readonly #child: ChildProcess;
  #said = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    createInterface({ input: child.stdout! }).on('line', (line) => (this.#said += `${line}\n`));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#said += text));
  }

  static async start(path: string): Promise<HostileFrontend> {
    const stdio: ['pipe', 'pipe', 'pipe'] = ['pipe', 'pipe', 'pipe'];
    const started = new HostileFrontend(startChild(process.execPath, [PROGRAM, path], { stdio }));
    await started.says(/^ready$/m);
    return started;
  }

  async says(pattern: RegExp): Promise<void> {
    try {
      await waitFor(`hostile front-end to say ${pattern}`, 10_000, () => pattern.test(this.#said));
    } catch (cause) {
      throw new Error(`hostile front-end said only: ${this.#said}`, { cause });
    }
  }

  async does(misdeed: string): Promise<void> {
    this.#said = this.#said.replace('done\n', '');
    this.#child.stdin?.write(`${misdeed}\n`);
    await this.says(/^done$/m);
  }

  async close(): Promise<void> {
    await endChild(this.#child);
  }
}

/** What must be seen at the port after each misdeed: its reason, or the fault of a queue. */
const MISDEEDS: Readonly<Record<string, RegExp>> = {
  truncate: /ERR_VRING_MEMORY_GONE/,
  'truncate-buffers': /ERR_VRING_MEMORY_GONE/,
  'runaway-index': /\bAVAIL_IDX\b/,
  'bad-head': /\bHEAD\b/,
  'outside-memory': /\bDESC_ADDRESS\b/,
  'endless-chain': /\bCHAIN_(LOOP|TOO_LONG)\b/,
};

test('hostile front-ends beside honest traffic', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const socket = (name: string): string => scratch.path(name);
  const ports = ['a', 'b'].map((name) => `${name}=vhost-user:${socket(name)}`);
  ports.push(...['bad', 'peer'].map((name) => `${name}=vhost-user:${socket(name)},vlan=99`));
  const control = scratch.path('control');
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control }));
  const macs = ['52:54:00:00:00:01', '52:54:00:00:00:02'] as const;
  const honest = scratch.own(
    await Testpmd.start({
      vdevs: macs.map((mac, i) => virtioUserVdev(i, { path: socket('ab'[i] as string), mac })),
      args: [`--eth-peer=0,${macs[1]}`, `--eth-peer=1,${macs[0]}`],
    }),
  );
  await honest.start(1);
  await sleep(300);
  await honest.stop();
  await honest.start(2);
  // Another port of the same VLAN: what it floods is written into the hostile one's memory.
  scratch.own(await HostileFrontend.start(socket('peer')));

  for (const [misdeed, expected] of Object.entries(MISDEEDS)) {
    await t.test(misdeed, async () => {
      const bad = await HostileFrontend.start(socket('bad'));
      try {
        const sessions = (await vswitch.waitState('bad', 'up')).sessions;
        await moves(vswitch, 'bad');
        await bad.does(misdeed);
        const status = await waitFor(`a reason of ${misdeed}`, 5000, async () => {
          const port = await vswitch.port('bad');
          return port.state !== 'up' ? port : null;
        }).catch(async () => {
          throw new Error(`port after ${misdeed}: ${JSON.stringify(await vswitch.port('bad'))}`);
        });
        const faults = status.queues.map((queue) => queue.fault);
        match(`${status.reason?.code} ${status.reason?.message} ${faults.join(' ')}`, expected);
        equal(status.sessions, sessions);
        await checkHonest(vswitch, honest);
      } finally {
        await bad.close();
      }
      await vswitch.waitState('bad', 'listening');
    });
  }

  await t.test('garbage instead of messages', async () => {
    const before = (await vswitch.port('bad')).reason;
    const client = connect(socket('bad'));
    client.on('error', () => {});
    client.write(Buffer.alloc(4096, 0xa5));
    const port = await waitFor('a reason of garbage', 5000, async () => {
      const status = await vswitch.port('bad');
      return status.reason?.code !== before?.code ? status : null;
    });
    match(port.reason?.code ?? '', /^ERR_VRING_/);
    match(port.reason?.message ?? '', /flags|version|request|size/i);
    client.destroy();
    await vswitch.waitState('bad', 'listening');
    await checkHonest(vswitch, honest);
  });

  await t.test('the port serves the next front-end', async () => {
    const good = scratch.own(await HostileFrontend.start(socket('bad')));
    await vswitch.waitState('bad', 'up');
    await moves(vswitch, 'bad');
    await good.close();
  });
  ok(vswitch.isRunning);
});

/** Frames go both ways through the port. */
async function moves(vswitch: SwitchProcess, name: string): Promise<void> {
  const first = await vswitch.port(name);
  await waitFor(`traffic on ${name}`, 5000, async () => {
    const { counters } = await vswitch.port(name);
    const grew = (key: string): boolean => counters[key]! > first.counters[key]!;
    return grew('rxFrames') && grew('txFrames');
  });
}

/** The two honest ports go on, and not one of the frames that circle there is lost. */
async function checkHonest(vswitch: SwitchProcess, honest: Testpmd): Promise<void> {
  ok(vswitch.isRunning);
  await moves(vswitch, 'a');
  await moves(vswitch, 'b');
  for (const name of ['a', 'b']) {
    const port = await vswitch.port(name);
    equal(port.state, 'up');
    equal(port.sessions, 1);
    equal(port.counters['txDropNoBuffer'], 0);
  }
  const stats = await honest.stats();
  equal(
    stats.reduce((sum, port) => sum + port.rxErrors + port.txErrors, 0),
    0,
  );
}
