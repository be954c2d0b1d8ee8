/**
 * SCSI adapters of the daemon, as a user runs it, with our own driver: units attached, grown,
 * limited and detached by commands; a daemon that is killed, and one that hands over to a new
 * process while commands are verified.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import type { DiskStatus } from '../../src/daemon/disks/disk-types.ts';
import type { AdapterStatus } from '../../src/daemon/disks/scsi-types.ts';
import { expect } from '../../src/daemon/hand-over.ts';
import { HAND_OVER_FORMAT, HandOverChannel } from '../../src/daemon/hand-over-channel.ts';
import { ScsiDisk, ScsiGuest, scsiCdb } from '../../src/guest/index.ts';
import { acceptUnix, listenUnix } from '../../src/sys/index.ts';
import * as scsi from '../../src/wire/scsi.ts';
import * as virtio from '../../src/wire/virtio-scsi.ts';
import { createDiskFile } from '../peers/blk-server.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { VringProcess } from '../peers/software-guest.ts';
import { SwitchProcess, vring } from '../peers/switch.ts';

const MIB = 2 ** 20;

type Unit = { readonly unit: string; readonly layers: readonly unknown[] };

/** A daemon with one adapter, `vm0`. */
async function start(scratch: Scratch, units: readonly Unit[]): Promise<SwitchProcess> {
  const config = scratch.path('config.yaml');
  const adapter = { name: 'vm0', socket: scratch.path('vm0'), queues: 2, units };
  writeFileSync(config, JSON.stringify({ scsi: [adapter] })); // YAML is a superset
  const control = scratch.path('c.sock');
  const args = ['--config', config];
  return scratch.own(await SwitchProcess.start({ ports: [], control, args }));
}

const file = (scratch: Scratch, name: string): string =>
  createDiskFile(scratch.path(`${name}.img`), 4 * MIB);

const disk = (daemon: SwitchProcess, name: string): Promise<DiskStatus> =>
  daemon.api(`/v1/disks/${name}`);

/** Writes and reads blocks of a unit until `isOver`, each read against what was written last. */
async function verify(unit: ScsiDisk, queue: number, isOver: () => boolean): Promise<number> {
  const model = new Map<number, number>();
  for (let i = 0; ; i++) {
    if (isOver()) return i;
    const lba = (i * 37) % 512;
    const byte = 1 + (i % 250);
    if (i % 3 === 2) {
      const before = model.get(lba);
      const read = await unit.read(lba, 1, 512, queue);
      if (before !== undefined)
        ok(
          read.every((one) => one === before),
          `block ${lba}`,
        );
    } else {
      await unit.write(lba, new Uint8Array(512).fill(byte), 512, queue);
      model.set(lba, byte);
    }
    if (i % 50 === 49) await unit.flush();
  }
}

test('units come, grow, are limited and go; what was added outlives a kill', async () => {
  await using scratch = new Scratch();
  const own: Unit[] = [{ unit: '0:0', layers: [file(scratch, 'own')] }];
  let daemon = await start(scratch, own);
  const control = ['--control', daemon.control];
  const events: virtio.ScsiEvent[] = [];
  const onEvent = (event: virtio.ScsiEvent): void => void events.push(event);
  let guest = await ScsiGuest.connect(scratch.path('vm0'), { queues: 2, onEvent });
  await new ScsiDisk(guest, 0, 0).capacity();

  const [b, c] = [file(scratch, 'b'), file(scratch, 'c')];
  match(
    await vring('scsi', 'attach', 'vm0', '0:1', '--file', b, ...control),
    /disk vm0:0:1 is attached, up, 4194304 bytes/,
  );
  await vring('scsi', 'attach', 'vm0', '5:0', '--layer', 'fault:', '--layer', c, ...control);
  await waitFor('two events', 5000, () => events.length === 2);
  const added = new ScsiDisk(guest, 0, 1);
  equal((await added.capacity()).blocks, (4 * MIB) / 512);
  await vring('disks', 'resize', 'vm0:0:1', '8M', ...control);
  await waitFor('an event', 5000, () => events.length === 3);
  equal((await added.capacity()).blocks, (8 * MIB) / 512);

  await vring('disks', 'limit', 'vm0:0:1', '--iops', '20', '--burst', '0.1', ...control);
  const began = performance.now();
  for (let i = 0; i < 15; i++) await added.write(i, new Uint8Array(512).fill(i), 512);
  ok(performance.now() - began > 500, 'fifteen writes take most of a second');
  await added.flush();
  await vring('scsi', 'detach', 'vm0', '5:0', ...control);
  await waitFor('an event', 5000, () => events.length === 4);
  equal(events[3]!.reason, virtio.VIRTIO_SCSI_EVT_RESET_REMOVED);

  const table = await vring('disks', ...control);
  match(table, /vm0:0:0 .*\n.*vm0:0:1 +up +8/);
  match(await vring('disks', '--once', '--interval', '0.1', ...control), /vm0:0:1 +up/);
  match(await vring('scsi', ...control), /vm0 +up +2 .*0:0 0:1/);
  match(await vring('scsi', 'show', 'vm0', ...control), /units +vm0:0:0 vm0:0:1\n/);
  await vring('scsi', 'add', 'vm1', '--socket', scratch.path('vm1'), '--queues', '4', ...control);
  await vring('scsi', 'attach', 'vm1', '0:0', '--layer', 'memory:1M', '--read-only', ...control);
  await rejects(
    vring('scsi', 'attach', 'vm1', '0:0', '--layer', 'memory:1M', ...control),
    /there is a unit vm1:0:0 already/,
  );
  const kinds = (await daemon.events()).map(({ kind, disk: of }) => `${of} ${kind}`);
  for (const event of ['vm0:0:1 disk-attached', 'vm0:5:0 disk-detached', 'vm1 scsi-added']) {
    ok(kinds.includes(event), `${event} of ${kinds.join(', ')}`);
  }
  process.kill(daemon.pid, 'SIGKILL'); // right behind the answer
  await daemon.ended();
  await guest.close();

  daemon = await start(scratch, own);
  const adapters = await daemon.api<AdapterStatus[]>('/v1/scsi');
  deepEqual(
    adapters.map(({ name, origin, queues, units }) => [name, origin, queues, units]),
    [
      ['vm0', 'config', 2, ['vm0:0:0', 'vm0:0:1']],
      ['vm1', 'api', 4, ['vm1:0:0']],
    ],
  );
  const { sizeBytes, limits, origin } = await disk(daemon, 'vm0:0:1');
  deepEqual([sizeBytes, limits, origin], [8 * MIB, { iops: 20, burstSeconds: 0.1 }, 'api']);
  equal((await disk(daemon, 'vm1:0:0')).readOnly, true);
  guest = await ScsiGuest.connect(scratch.path('vm0'));
  equal((await new ScsiDisk(guest, 0, 1).read(14, 1, 512))[0], 14, 'what was flushed');
  await guest.close();
  await vring('scsi', 'remove', 'vm1', ...control);
  equal(existsSync(scratch.path('vm1')), false);
});

test('two hand-overs under commands, and one that fails', { timeout: 120_000 }, async (t) => {
  await using scratch = new Scratch();
  const first = await start(scratch, [
    { unit: '0:0', layers: [file(scratch, 'a')] },
    { unit: '0:1', layers: [{ fault: {} }, file(scratch, 'b')] },
    { unit: '7:0', layers: [scratch.path('missing.img')] },
  ]);
  const layers = [file(scratch, 'c')];
  await first.api('/v1/scsi/vm0/units', 'POST', { unit: '0:2', layers, limits: { iops: 1e5 } });
  const events: virtio.ScsiEvent[] = [];
  const onEvent = (event: virtio.ScsiEvent): void => void events.push(event);
  const guest = await ScsiGuest.connect(scratch.path('vm0'), { queues: 2, packed: true, onEvent });
  const units = [0, 1, 2].map((lun) => new ScsiDisk(guest, 0, lun));
  for (const unit of units) await unit.capacity();
  const reserve = scsiCdb(scsi.RESERVE_6, 6);
  equal((await guest.command({ target: 0, lun: 1, cdb: reserve })).status, 0);
  let isOver = false;
  const running = units.map((unit, i) => verify(unit, i, () => isOver));
  await sleep(200);
  const before = await disk(first, 'vm0:0:0');
  let last: VringProcess | null = null;
  for (let round = 0; round < 2; round++) {
    const next = new VringProcess('switch', '--take-over', '--control', first.control);
    scratch.own(next);
    await waitFor('the successor', 60_000, () => next.out.includes('ready:'));
    const predecessor: { ended(): Promise<unknown> } = last ?? first;
    deepEqual(await predecessor.ended(), { code: 0, signal: null });
    t.diagnostic(/pause [\d.]+ ms/.exec(next.err)?.[0] ?? next.err);
    last = next;
    await sleep(200);
  }
  // A successor that dies when the adapter is its own nearly.
  const listener = listenUnix(scratch.path('successor'));
  const request = { socket: scratch.path('successor'), format: HAND_OVER_FORMAT, version: 'x' };
  await first.api('/v1/hand-over', 'POST', request); // to whoever serves at the control socket
  const channel = new HandOverChannel(acceptUnix(listener.number)!);
  (await expect(channel, 'prepare', 30_000)).fds.close();
  await channel.send('ready', null);
  (await expect(channel, 'switch', 30_000)).fds.close();
  channel.close();
  listener.close();
  await waitFor('the hand-over to fail', 20_000, async () => {
    return (await first.events()).some(({ kind }) => kind === 'hand-over-failed');
  });
  await sleep(200);
  isOver = true;
  const counts = await Promise.all(running);
  t.diagnostic(`${counts.join(', ')} commands`);
  ok(counts.every((count) => count > 20));

  const ready = await guest.command({ target: 0, lun: 0, cdb: scsiCdb(0, 6) });
  deepEqual([ready.status, ready.sense], [0, null], 'no unit attention');
  const keys = scsiCdb(scsi.PERSISTENT_RESERVE_OUT, 10, [8, 1, 24]);
  const out = new Uint8Array(24);
  out[15] = 1; // a key
  const conflict = await guest.command({ target: 0, lun: 1, cdb: keys, out });
  equal(conflict.status, scsi.STATUS_RESERVATION_CONFLICT, 'it is reserved still');
  const after = await disk(first, 'vm0:0:0');
  deepEqual([after.state, after.sessions], ['up', 1], 'the session went on');
  ok(after.counters['writes']! > before.counters['writes']!, 'counters go on');
  deepEqual((await disk(first, 'vm0:0:2')).limits, { iops: 1e5 });
  equal((await disk(first, 'vm0:7:0')).state, 'failed');
  equal(events.length, 0);
  createDiskFile(scratch.path('missing.img'), MIB);
  await first.api('/v1/disks/vm0:7:0/reopen', 'POST');
  await waitFor('an event', 5000, () => events.length === 1);
  await guest.close();
  await last!.close();
});
