/**
 * Inflight tracking: a back-end that finishes requests out of order is killed again and again, and
 * its driver counts every completion. None is lost, none comes twice.
 */
import { equal, ok } from 'node:assert/strict';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import type { ChildProcess } from 'node:child_process';
import { endChild, startChild } from '../../src/vmm/index.ts';
import { VHOST_USER_PROTOCOL_F_GPA_ADDRESSES } from '../../src/wire/vhost-user.ts';
import { RequestDriver } from '../peers/request-driver.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';

const DEVICE = fileURLToPath(new URL('../peers/slow-device.ts', import.meta.url));

/** All protocol features, GET_VRING_BASE_INFLIGHT among them, but ring addresses as they were. */
const ALL = ~(1n << BigInt(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));

class SlowDevice {
  readonly #child: ChildProcess;
  #out = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#out += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#out += text));
  }

  static async start(socket: string, ...args: string[]): Promise<SlowDevice> {
    const device = new SlowDevice(
      startChild(process.execPath, [DEVICE, '--socket', socket, ...args], {
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
    await waitFor('the device', 15_000, () => device.#out.includes('ready'));
    return device;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get log(): string {
    return this.#out;
  }

  async kill(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }

  async close(): Promise<void> {
    await endChild(this.#child);
  }
}

/** Lehmer's generator: the same moments for every run, as far as a machine's load allows. */
function randoms(seed: number): (below: number) => number {
  let state = seed;
  return (below) => (state = (state * 48271) % 0x7fff_ffff) % below;
}

const KILLS = 12;

type Kind = { readonly packed: boolean; readonly indirect: boolean };

async function survives(scratch: Scratch, kind: Kind, seed: number): Promise<void> {
  const socket = scratch.path(`device-${seed}`);
  const random = randoms(seed);
  let device = scratch.own(await SlowDevice.start(socket));
  const driver = scratch.own(await RequestDriver.start({ socket, ...kind }));
  const over = new AbortController();
  const submitting = (async () => {
    while (!over.signal.aborted && driver.failure === null) {
      while (driver.submit(1 + random(8))); // as many as fit, each for a while of its own
      await driver.progress();
    }
  })();
  for (let kill = 1; kill <= KILLS; kill++) {
    await sleep(5 + random(60));
    await device.kill();
    device = scratch.own(await SlowDevice.start(socket));
    await waitFor('the driver to be back', 5000, () => driver.reconnects === kill);
  }
  await sleep(50);
  over.abort();
  await submitting;
  await driver.settled();
  ok(driver.submitted > 100, `${driver.submitted} requests`);
  const wrong = driver.completions.flatMap((count, number) => (count === 1 ? [] : [number]));
  equal(wrong.length, 0, `requests ${wrong.slice(0, 9)} did not complete exactly once`);
  ok(driver.answeredBy.size > KILLS / 2, `${driver.answeredBy.size} processes answered`);
  ok(!device.log.includes('fault'), device.log);
}

test(`exactly once over ${KILLS} kills of each`, { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const kinds: readonly Kind[] = [
    { packed: false, indirect: false },
    { packed: true, indirect: false },
    { packed: true, indirect: true },
  ];
  await Promise.all(kinds.map((kind, i) => survives(scratch, kind, 11 + i)));
});

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  test(`GET_VRING_BASE_INFLIGHT: a stopped ring keeps its requests, ${kind}`, async () => {
    await using scratch = new Scratch();
    const socket = scratch.path('device');
    const options = { socket, packed, protocolFeatures: ALL };
    const first = scratch.own(await SlowDevice.start(socket, '--stall'));
    const driver = scratch.own(await RequestDriver.start(options));
    for (let i = 0; i < 20; i++) ok(driver.submit(1));
    await sleep(100); // taken, and never answered
    await driver.stop();
    equal(driver.completed, 0, 'it did not wait for them');
    await first.kill();
    const second = scratch.own(await SlowDevice.start(socket));
    await driver.settled();
    equal(driver.completed, 20);
    ok(driver.completions.every((count) => count === 1));
    equal([...driver.answeredBy].join(), String(second.pid));
  });
}
