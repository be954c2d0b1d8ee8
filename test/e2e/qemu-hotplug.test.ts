/**
 * Memory that is plugged into a running guest of QEMU, and taken out again, while it has traffic.
 * Where the guest's kernel may use it for itself, its packets are in there: Linux prefers memory
 * above 4 GiB, where QEMU plugs, to that below, where this guest has all it was started with.
 */
import { equal, match, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { LinuxGuest, type GuestNic, type QmpEvent } from '../../src/vmm/index.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { startSwitch, vring } from '../peers/switch.ts';
import { checkBulk, endlessPing } from '../peers/traffic.ts';

const DIMM_MIB = 128; // a memory block of Linux on x86-64, below 64 GiB
const BULK_MIB = 8;
const GUEST_MS = 30_000;

/** What the guest does with blocks that appear; `movable` never holds kernel data, so it can go. */
type Use = 'kernel' | 'movable';

for (const packed of [false, true]) {
  const form = packed ? 'packed' : 'split';
  test(`memory comes and goes under traffic: ${form}`, async (t) => {
    if (!requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox')) return;
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '' });
    const deleted = new Set<unknown>();
    const onEvent = ({ event, data }: QmpEvent): void => {
      if (event === 'DEVICE_DELETED') deleted.add(data['device']);
    };
    const nic = (name: string): GuestNic => ({
      path: scratch.path(name),
      mode: 'client',
      queuePairs: 1,
      packed,
      mrgRxbuf: true,
      mac: `52:54:00:00:0f:0${name}`,
      mtu: null,
    });
    const [a, b] = ['a', 'b'].map((name, i) =>
      scratch.own(
        LinuxGuest.launch({
          name,
          ip: `10.0.0.${i + 1}/24`,
          nics: [nic(name)],
          ...(i === 0 ? { hotplug: { slots: 4, maxMib: 1024 }, onEvent } : {}),
        }),
      ),
    ) as [LinuxGuest, LinuxGuest];
    await Promise.all([a.waitReady(), b.waitReady()]);
    const regions = async (): Promise<number> => (await vswitch.port('a')).memory?.regions ?? 0;
    const total = async (): Promise<number> =>
      Number(/MemTotal: +(\d+)/.exec(await a.check('cat /proc/meminfo'))?.[1]) / 1024;

    const plug = async (name: string, use: Use): Promise<void> => {
      const [before, memory] = [await regions(), await total()];
      await a.check(`echo online_${use} > /sys/devices/system/memory/auto_online_blocks`);
      const backend = { 'qom-type': 'memory-backend-memfd', id: `${name}-memory`, share: true };
      await a.qmp('object-add', { ...backend, size: DIMM_MIB * 2 ** 20 });
      await a.qmp('device_add', { driver: 'pc-dimm', id: name, memdev: `${name}-memory` });
      await waitFor('the guest uses it', GUEST_MS, async () => {
        return (await total()) > memory + DIMM_MIB / 2;
      });
      equal(await regions(), before + 1, 'the front-end shared one region more');
    };
    const unplug = async (name: string): Promise<void> => {
      const before = await regions();
      // The guest may refuse for a moment: a page that it could not move.
      await waitFor(`the guest gives ${name} back`, GUEST_MS, async () => {
        await a.qmp('device_del', { id: name }).catch(() => {});
        return waitFor('the event', 2000, () => deleted.has(name)).catch(() => false);
      });
      await a.qmp('object-del', { id: `${name}-memory` });
      equal(await regions(), before - 1, 'the front-end took the region back');
    };

    const ping = await endlessPing(a, '10.0.0.2');
    const started = await regions();
    await plug('dimm0', 'kernel');
    match(await a.check('cat /proc/buddyinfo'), /zone +Normal/);
    await checkBulk(a, b, '10.0.0.2', BULK_MIB);
    await checkBulk(b, a, '10.0.0.1', BULK_MIB);
    await plug('dimm1', 'movable');
    await plug('dimm2', 'movable');
    await checkBulk(b, a, '10.0.0.1', BULK_MIB);
    const shown = await vring('port', 'show', 'a', '--control', vswitch.control);
    match(shown, new RegExp(`${started + 3} regions`));
    await unplug('dimm2');
    await unplug('dimm1');
    await checkBulk(a, b, '10.0.0.2', BULK_MIB);
    equal(await regions(), started + 1);

    const { sent, lost } = await ping.end();
    ok(sent >= 10, `the guest sent only ${sent} requests`);
    equal(lost, 0, `${lost} of ${sent} requests were not answered`);
    const port = await vswitch.port('a');
    equal(port.sessions, 1);
    equal(port.counters['faults'], 0);
  });
}
