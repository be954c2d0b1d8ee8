/** One switch with hundreds of ports: they start, rest, and forward as a few do. */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { connectNetGuest } from '../../src/guest/index.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, ip4 } from '../peers/software-guest.ts';
import { startSwitch } from '../peers/switch.ts';

const PORTS = 250;
/** With its session and rings a port takes 130 to 190 KiB, with garbage; own buffers are 170 more. */
const PORT_BYTES = 280 * 1024;
const IDLE_SECONDS = 1;
/** The clock of /proc/PID/stat ticks 100 times a second: two ticks are noise. */
const IDLE_CPU_SECONDS = 0.02;

test(`${PORTS} connected ports`, { timeout: 60_000 }, async (t) => {
  await using scratch = new Scratch();
  const names = Array.from({ length: PORTS }, (_, i) => `p${i}`);
  const [first, last] = [names[0]!, names.at(-1)!];
  const ports = Object.fromEntries(names.map((name) => [name, ''] as const));
  const vswitch = await startSwitch(scratch, ports);
  const a = scratch.own(await Host.join(scratch.path(first), 1));
  const b = scratch.own(await Host.join(scratch.path(last), 2));
  const before = vswitch.residentBytes();
  for (const [i, name] of names.slice(1, -1).entries()) {
    const mac = `02:00:00:00:01:${i.toString(16).padStart(2, '0')}`;
    scratch.own(await connectNetGuest({ socket: scratch.path(name), mac, ringSize: 256 }));
  }
  await waitFor('all ports', 10_000, async () =>
    (await vswitch.ports()).every(({ state }) => state === 'up'),
  );

  await t.test('a broadcast and its answer cross it', async () => {
    ok(await a.hears(ip4(2)));
    ok(await b.hears(ip4(1)));
    const others = (await vswitch.ports()).slice(1, -1);
    ok(
      others.every(({ counters }) => counters['txFrames']! > 0),
      'the question went to all',
    );
    equal(
      others.reduce((sum, { counters }) => sum + counters['faults']!, 0),
      0,
    );
  });
  await t.test('a port takes little memory', () => {
    const each = (vswitch.residentBytes() - before) / (PORTS - 2);
    t.diagnostic(`${(each / 1024).toFixed(0)} KiB for each`);
    ok(each < PORT_BYTES, `${each} bytes for each port`);
  });
  await t.test('at rest they take no processor time', async () => {
    await sleep(1000); // what the API was asked is answered, guests' announcements are over
    const used = vswitch.cpuSeconds();
    await sleep(IDLE_SECONDS * 1000);
    const spent = vswitch.cpuSeconds() - used;
    ok(spent <= IDLE_CPU_SECONDS, `${spent.toFixed(2)} s in ${IDLE_SECONDS} s`);
  });
});
