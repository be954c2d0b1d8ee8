/** Policies of ports, with real sessions, workers and clocks: by what is counted, never by time. */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { Host, ip4 } from '../peers/software-guest.ts';
import { Scratch, sleep } from '../peers/scratch.ts';
import { SwitchProcess, vring } from '../peers/switch.ts';

const PINGS = 20;
/** Longer than any spin of a port that is not tuned for latency. */
const PAUSE_MS = 3;

const sum = (vswitch: SwitchProcess, name: string): Promise<number> =>
  vswitch
    .ports()
    .then((ports) => ports.reduce((all, { counters }) => all + (counters[name] ?? 0), 0));

async function pings(from: Host, to: Host): Promise<void> {
  for (let i = 0; i < PINGS; i++) {
    ok(await from.hears(ip4(to.number)), `ping ${i}`);
    await sleep(PAUSE_MS);
  }
}

test('what a port is tuned for shows in its counters, and can change while it runs', async () => {
  await using scratch = new Scratch();
  const control = scratch.path('control');
  const ports = ['a', 'b'].map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control, args: ['--power'] }));
  const a = scratch.own(await Host.join(scratch.path('a'), 1));
  const b = scratch.own(await Host.join(scratch.path('b'), 2));
  equal((await vswitch.port('a')).policy, 'power');

  await pings(a, b);
  equal((await sum(vswitch, 'spinsRewarded')) + (await sum(vswitch, 'spinsUnrewarded')), 0);
  ok((await sum(vswitch, 'sleeps')) >= PINGS, 'it sleeps after each frame');
  ok((await sum(vswitch, 'rests')) > 0, 'and tries whether a rest serves more');

  for (const name of ['a', 'b']) {
    const said = await vring('port', 'set', name, '--policy', 'latency', '--control', control);
    ok(said.includes('policy latency'), said);
  }
  const rests = await sum(vswitch, 'rests');
  await pings(a, b);
  ok((await sum(vswitch, 'spinsUnrewarded')) > 0, 'it spins');
  equal(await sum(vswitch, 'rests'), rests, 'and rests no more');
});
