/**
 * Our guests behind a virtual IOMMU, on a switch: the device knows no guest-physical address, asks
 * for translations, and loses them while frames go.
 */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import {
  GuestIommu,
  parseIp,
  patternSource,
  receiveBulk,
  remapFreeSlots,
  sendBulk,
} from '../../src/guest/index.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, ip4, ip6 } from '../peers/software-guest.ts';
import { SwitchProcess, startSwitch } from '../peers/switch.ts';

function iommuOf(host: Host): GuestIommu {
  const space = host.guest.addressSpace;
  ok(space instanceof GuestIommu);
  return space;
}

test('guests behind an IOMMU hear each other', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, {
    a: ',iommu=on',
    b: ',iommu=on',
    c: ',iommu=on',
    d: '',
  });
  const hosts = [
    await Host.join(scratch.path('a'), 1, { iommu: true }),
    await Host.join(scratch.path('b'), 2, { iommu: 'scatter', packed: true }),
    await Host.join(scratch.path('c'), 3, { iommu: 'scatter', features: '-mrg,-indirect' }),
    await Host.join(scratch.path('d'), 4),
  ];
  for (const host of hosts) scratch.own(host);
  for (const host of hosts) {
    for (const other of hosts) {
      if (host === other) continue;
      ok(await host.hears(ip4(other.number)), `${host.number} hears ${other.number}`);
      ok(await host.hears(ip6(other.number), 1400), `${host.number} hears ${other.number}`);
    }
  }
  for (const host of hosts.slice(0, 3)) {
    const { misses, faults } = iommuOf(host).counters;
    ok(misses > 0 && faults === 0, `${misses} misses, ${faults} faults`);
  }
  ok(vswitch.isRunning);
});

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  test(`translations come and go under traffic, ${kind}`, { timeout: 60_000 }, async () => {
    await using scratch = new Scratch();
    await startSwitch(scratch, { a: ',iommu=on', b: ',iommu=on' });
    const options = { iommu: 'scatter', ringSize: 64, packed } as const;
    const from = scratch.own(await Host.join(scratch.path('a'), 1, options));
    const to = scratch.own(await Host.join(scratch.path('b'), 2, options));
    ok(await from.hears(ip4(2)));
    const receiving = receiveBulk(to.stack, { port: 7700 });
    const address = parseIp(ip4(2))!;
    const source = patternSource(2 * 2 ** 20);
    const sending = sendBulk(from.stack, { to: address, port: 7700, source });
    let moved = 0;
    let over = false;
    void receiving.finally(() => (over = true));
    for (let round = 0; !over || moved === 0; round++) {
      moved += await remapFreeSlots(from.guest.tx[0]!, iommuOf(from), 8);
      moved += await remapFreeSlots(to.guest.tx[0]!, iommuOf(to), 8);
      if (round % 4 === 0) await iommuOf(to).invalidateAll();
      if (round % 4 === 2) await iommuOf(from).invalidateAll();
      await sleep(30);
    }
    const [received, sent] = [await receiving, await sending];
    equal(received.matches, true);
    equal(sent.sha256, received.sha256);
    for (const host of [from, to]) {
      const { misses, faults } = iommuOf(host).counters;
      ok(misses > 100 && faults === 0, `${misses} misses, ${faults} faults`);
      equal(host.guest.failure, null);
    }
  });
}

test('an IOMMU and a switch that is killed', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const ports = ['a', 'b'].map((name) => `${name}=vhost-user:${scratch.path(name)},iommu=on`);
  const start = () => SwitchProcess.start({ ports, control: scratch.path('control') });
  let vswitch = scratch.own(await start());
  const a = scratch.own(
    await Host.join(scratch.path('a'), 1, { iommu: 'scatter', reconnect: true }),
  );
  const b = scratch.own(
    await Host.join(scratch.path('b'), 2, { iommu: true, reconnect: true, packed: true }),
  );
  ok(await a.hears(ip4(2)));
  for (let round = 1; round <= 2; round++) {
    process.kill(vswitch.pid, 'SIGKILL');
    await vswitch.ended();
    vswitch = scratch.own(await start());
    await waitFor('both guests', 5000, () => a.guest.reconnects + b.guest.reconnects === 2 * round);
    ok(await a.hears(ip4(2)));
    ok(await b.hears(ip6(1)));
  }
});
