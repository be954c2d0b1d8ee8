/**
 * Our guests and a switch that is killed and comes back: guests keep their rings, their memory and
 * their sockets; what the new switch does not offer any more is named.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { runTraffic } from '../../src/guest/index.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, VringProcess, ip4, ip6, macOf } from '../peers/software-guest.ts';
import { SwitchProcess } from '../peers/switch.ts';

type Setup = { readonly ports: string[]; readonly control: string };

function setup(scratch: Scratch, names: readonly string[], options = ''): Setup {
  const ports = names.map((name) => `${name}=vhost-user:${scratch.path(name)}${options}`);
  return { ports, control: scratch.path('control') };
}

async function kill(vswitch: SwitchProcess): Promise<void> {
  process.kill(vswitch.pid, 'SIGKILL');
  await vswitch.ended();
}

test('guests under traffic survive a switch that is killed', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const names = ['a', 'b', 'c', 'd', 'e', 'f'];
  const start = () => SwitchProcess.start(setup(scratch, names));
  let vswitch = scratch.own(await start());
  const kinds = [
    {},
    { packed: true },
    { features: '-mrg,-indirect', ringSize: 64 },
    { packed: true, features: '+in_order', protocolFeatures: ~0n }, // guest-physical rings
  ];
  const hosts: Host[] = [];
  for (const [i, kind] of kinds.entries()) {
    const options = { reconnect: true, ...kind };
    hosts.push(scratch.own(await Host.join(scratch.path(names[i]!), i + 1, options)));
  }
  const manual = { reconnect: true, notify: 'manual', ringSize: 1024 } as const;
  const from = scratch.own(await Host.join(scratch.path('e'), 5, manual));
  const to = scratch.own(await Host.join(scratch.path('f'), 6, { ...manual, packed: true }));
  to.guest.announce();
  to.guest.onLink = ({ kind }) => {
    if (kind === 'restored') to.guest.announce(); // the new switch has learned nothing yet
  };
  const stop = new AbortController();
  const sink = runTraffic({ guest: to.guest, signal: stop.signal });
  const generate = { sizeBytes: 300, targetMac: macOf(6), rate: 4000 };
  const sender = runTraffic({ guest: from.guest, generate, signal: stop.signal });

  for (let round = 1; round <= 3; round++) {
    await sleep(300);
    await kill(vswitch);
    vswitch = scratch.own(await start());
    for (const { guest } of [...hosts, from, to]) {
      await waitFor('the guest to be back', 5000, () => guest.reconnects === round);
    }
    for (const host of hosts) {
      for (const other of hosts) {
        if (other !== host)
          ok(await host.hears(ip4(other.number)), `${host.number} hears ${other.number}`);
      }
      ok(await host.hears(ip6(1 + (host.number % 4)), 1200));
    }
  }
  stop.abort();
  const [sent, received] = [await sender, await sink];
  // What a switch loses while it is down, or the port of the receiver is, is lost as on any wire.
  deepEqual([received.records.corrupt, sent.records.corrupt], [0, 0]);
  ok(received.records.good > 1000, `${received.records.good} of ${sent.records.sent}`);

  const second = new AbortController();
  const sinkAgain = runTraffic({ guest: to.guest, signal: second.signal });
  const paced = { sizeBytes: 300, targetMac: macOf(6), rate: 2000, frames: 1000 };
  await runTraffic({ guest: from.guest, generate: paced });
  await sleep(200);
  second.abort();
  const { records } = await sinkAgain;
  deepEqual([records.good, records.lost, records.corrupt], [1000, 0, 0], 'rings are sound');
  for (const { guest } of [...hosts, from, to]) equal(guest.failure, null);
  deepEqual(
    (await vswitch.ports()).map(({ state }) => state),
    names.map(() => 'up'),
  );
});

test('what the new switch lacks is named', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const start = (options: string) => SwitchProcess.start(setup(scratch, ['a', 'b'], options));
  const first = scratch.own(await start(''));
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { reconnect: true, packed: true }));
  const b = scratch.own(
    await Host.join(scratch.path('b'), 2, { reconnect: true, features: '-packed,-mrg' }),
  );
  await kill(first);
  const second = scratch.own(await start(',packed=off'));
  const failure = await a.guest.closed;
  equal((failure as { code?: string } | null)?.code, 'ERR_VRING_FEATURES');
  match(failure?.message ?? '', /does not offer the features RING_PACKED, which are in use/);
  await waitFor('the other guest', 5000, () => b.guest.reconnects === 1);
  equal(b.guest.failure, null);
  await second.close();
});

test('server mode, and the command line', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const socket = scratch.path('c');
  const ports = [`a=vhost-user:${scratch.path('a')}`, `c=vhost-user:${socket},client`];
  const start = () => SwitchProcess.start({ ports, control: scratch.path('control') });
  const own = ['--socket', socket, '--mac', macOf(2), '--ip', `${ip4(2)}/24`, '--json'];
  const guest = scratch.own(
    new VringProcess('guest', 'net', '--server', '--reconnect', ...own, 'echo'),
  );
  await guest.says(/waiting at/);
  let vswitch = scratch.own(await start());
  await guest.says(/"event":"ready"/);
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { reconnect: true }));
  ok(await a.hears(ip4(2)));
  for (let round = 1; round <= 2; round++) {
    await kill(vswitch);
    vswitch = scratch.own(await start());
    await waitFor('the guest to be back', 5000, () => a.guest.reconnects === round);
    await vswitch.waitState('c', 'up');
    ok(await a.hears(ip4(2)));
  }
  match(guest.err, /the back-end is gone, waiting for the next one at .*\/c/);
  match(guest.err, /the back-end is back after \d+ ms/);
  deepEqual(await guest.close(), { code: 0, signal: null });
});

test('commands of the control queue are said again', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const start = () => SwitchProcess.start(setup(scratch, ['a', 'b']));
  let vswitch = scratch.own(await start());
  const a = scratch.own(
    await Host.join(scratch.path('a'), 1, { reconnect: true, features: '+ctrl_vq' }),
  );
  const b = scratch.own(await Host.join(scratch.path('b'), 2, { reconnect: true }));
  await a.guest.control!.setVlan(7, true);
  await a.guest.control!.setMacTable([], ['01:00:5e:00:00:01']);
  const chains = a.guest.control!.queue.chains;
  await kill(vswitch);
  vswitch = scratch.own(await start());
  await waitFor('both guests', 5000, () => a.guest.reconnects + b.guest.reconnects === 2);
  await waitFor('the commands', 5000, () => a.guest.control!.queue.chains === chains + 2);
  ok(await a.hears(ip4(2)));
  equal(a.guest.failure, null);
});
