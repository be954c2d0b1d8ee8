/** A port and a front-end that speaks what no VMM of today speaks: a real worker, no frames. */
import { deepEqual, equal, ok, throws } from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { createEventfd } from '../sys/index.ts';
import { VhostUserFrontend } from '../vhost-user/index.ts';
import * as protocol from '../wire/vhost-user.ts';
import { buildConfig } from './config.ts';
import { SentFds } from './hand-over-channel.ts';
import { RestingGuest } from './resting-guest.ts';
import type { PortStatus } from './switch-types.ts';
import { VirtualSwitch } from './virtual-switch.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-port-'));
after(() => rmSync(folder, { recursive: true }));

const NET_STATUS_AT = 6;
const NET_MTU_AT = 10;

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await holds()); tries++) {
    ok(tries < 200, what);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test('a driver hears of its link and MTU, a switch of a guest that moved', async () => {
  const path = join(folder, 'a');
  const config = buildConfig({ ports: [`a=vhost-user:${path},vlan=7,iommu=on`] });
  const vswitch = await VirtualSwitch.start(config);
  const port = (): Promise<PortStatus> => vswitch.port('a');
  try {
    let told = 0;
    const events = { configChanged: () => void told++ };
    const front = await VhostUserFrontend.connect(path, { events });
    {
      await using guest = await RestingGuest.start(front, true);
      void guest;
      await until('the port is up', async () => (await port()).state === 'up');
      const { protocolFeatures, session } = await port();
      for (const name of ['RARP', 'DEVICE_STATE', 'RESET_DEVICE', 'BACKEND_REQ', 'LOG_SHMFD']) {
        ok(protocolFeatures?.names.includes(name), `${name} is negotiated`);
      }
      equal(protocolFeatures?.names.includes('INFLIGHT_SHMFD'), false);
      deepEqual([session?.log, session?.iotlb, session?.postcopy], [null, null, 'none']);
      equal(session?.channel?.requests, 0);

      await vswitch.updatePort('a', { linkUp: false });
      await until('the driver was told', () => told === 1);
      deepEqual(await front.getConfig(NET_STATUS_AT, 2), Uint8Array.of(0, 0));
      await vswitch.updatePort('a', { linkUp: true, mtu: 1400 });
      await until('of the MTU, too', () => told === 3);
      deepEqual(await front.getConfig(NET_MTU_AT, 2), Uint8Array.of(1400 & 255, 1400 >> 8));
      equal((await port()).mtu, 1400);
      equal((await port()).session?.channel?.requests, 3);

      await front.migration.sendRarp(Uint8Array.of(0x52, 0x54, 0, 0, 0, 1));
      await until('the address is learned', async () => (await vswitch.macTable()).length === 1);
      const [entry] = await vswitch.macTable();
      deepEqual([entry?.mac, entry?.vlan, entry?.port], ['52:54:00:00:00:01', 7, 'a']);
    }
    await until('the session ends', async () => (await port()).session === null);
    equal((await port()).mtu, 1400, 'what the port offers stays');

    const again = await VhostUserFrontend.connect(path, {});
    await using split = await RestingGuest.start(again, false);
    void split;
    const changed = () => vswitch.events().find(({ kind }) => kind === 'features-changed');
    await until('an event names what changed', () => changed() !== undefined);
    ok(changed()!.message.includes('-RING_PACKED'), changed()!.message);
    ok(changed()!.message.includes('-protocol BACKEND_REQ'), changed()!.message);
  } finally {
    await vswitch.close();
  }
});

test('what cannot be handed over now is refused by name, before anybody stands still', async (t) => {
  const path = join(folder, 'b');
  const config = buildConfig({ ports: [`b=vhost-user:${path},postcopy=on`] });
  const vswitch = await VirtualSwitch.start(config);
  using control = createEventfd('the control socket');
  const front = await VhostUserFrontend.connect(path, {});
  try {
    if (!front.has(protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT)) {
      t.skip('no userfaultfd here: be root, or set sysctl vm.unprivileged_userfaultfd=1');
      return;
    }
    vswitch.plan(new SentFds(), control);
    using userfaults = await front.migration.advisePostcopy();
    void userfaults;
    throws(() => vswitch.plan(new SentFds(), control), {
      code: 'ERR_VRING_BUSY',
      message: /^port b: .*postcopy is under way/,
    });
    await front.migration.endPostcopy();
    vswitch.plan(new SentFds(), control);
  } finally {
    await front.close();
    await vswitch.close();
  }
});
