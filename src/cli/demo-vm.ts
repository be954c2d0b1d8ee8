/**
 * `npm start -- --vm`: the same with two Linux guests in QEMU, Debian's kernel and busybox, and a
 * disk for each of them.
 */
import { closeSync, openSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { VringError } from '../base/errors.ts';
import {
  findProgram,
  type GuestNic,
  guestProgram,
  LinuxGuest,
  vhostUserDisks,
  VringService,
} from '../vmm/index.ts';
import type { DemoRow } from './demo.ts';
import { complain } from './output.ts';

const IPS = ['10.0.0.1', '10.0.0.2'] as const;
const BULK_MIB = 16;
const BULK_TIMEOUT_MS = 120_000;
const DISK_MIB = 64;
const FILE_MIB = 8;
const SEND = `nc ${IPS[1]} 5001 < /tmp/bulk`;

/** `folder` is the demo's own; it is removed afterwards. */
export async function runVirtualMachines(
  sockets: readonly [string, string],
  folder: string,
): Promise<DemoRow[]> {
  const disks: Disk[] = [];
  const guests: LinuxGuest[] = [];
  try {
    disks.push(...(await Promise.all(sockets.map((_, n) => serveDisk(folder, n)))));
    complain('booting two Linux guests in QEMU; without usable KVM that takes some seconds ...');
    const started = performance.now();
    const boots = await Promise.allSettled(sockets.map((path, n) => boot(path, disks[n]!, n)));
    guests.push(...boots.filter((b) => b.status === 'fulfilled').map((b) => b.value));
    for (const result of boots) if (result.status === 'rejected') throw result.reason;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const rows: DemoRow[] = [{ what: 'two Linux guests', value: 'up', how: `after ${seconds} s` }];
    const [vm0, vm1] = guests as [LinuxGuest, LinuxGuest];
    rows.push(await ping(vm0, IPS[1]), await ping(vm1, IPS[0]));
    rows.push(await bulk(vm0, vm1));
    complain('each guest makes a file system on its disk, writes a file, and reboots ...');
    rows.push(...(await Promise.all(guests.map(outliveReboot))));
    return rows;
  } finally {
    await Promise.all(guests.map((guest) => guest.close()));
    await Promise.all(disks.map(({ service }) => service.end()));
  }
}

type Disk = { readonly socket: string; readonly service: VringService };

async function serveDisk(folder: string, n: number): Promise<Disk> {
  const [socket, file] = [join(folder, `disk${n}.sock`), join(folder, `disk${n}.img`)];
  closeSync(openSync(file, 'w'));
  truncateSync(file, DISK_MIB * 2 ** 20);
  const words = ['serve', 'blk', '--json', '--socket', socket, '--file', file];
  const service = new VringService(`the disk of vm${n}`, words);
  await service.ready();
  return { socket, service };
}

function boot(path: string, { socket }: Disk, n: number): Promise<LinuxGuest> {
  const nic: GuestNic = {
    path,
    mode: 'client',
    queuePairs: 1,
    packed: false,
    mrgRxbuf: true,
    mac: `52:54:00:00:00:0${n + 1}`,
    mtu: null,
  };
  return LinuxGuest.start({
    name: `vm${n}`,
    nics: [nic],
    ip: `${IPS[n]}/24`,
    modules: ['virtio_blk', 'ext4'],
    files: findProgram('mkfs.ext4') === null ? [] : guestProgram('mkfs.ext4'),
    extra: vhostUserDisks([{ socket }]),
  });
}

/** A file on a file system of the guest's own making is there, and the same, after a reboot. */
async function outliveReboot(guest: LinuxGuest): Promise<DemoRow> {
  const hasMkfs = (await guest.run('test -e /bin/mkfs.ext4')).status === 0;
  await guest.check(`${hasMkfs ? 'mkfs.ext4 -q' : 'busybox mke2fs'} /dev/vda`);
  const mount = 'mkdir -p /mnt; mount -t ext4 /dev/vda /mnt';
  const sum = 'sha256sum < /mnt/file';
  const write = `dd if=/dev/urandom of=/mnt/file bs=64k count=${FILE_MIB * 16} conv=fsync`;
  const started = performance.now();
  const before = await guest.check(`${mount} && ${write} 2>/dev/null && ${sum}`);
  await guest.check('umount /mnt');
  await guest.reboot();
  const after = await guest.check(`${mount} && ${sum}; umount /mnt`);
  if (after !== before) {
    const text = `${guest.name}'s disk: ${before.slice(0, 64)} was written, ${after} is there`;
    throw new VringError('ERR_VRING_DEMO', text);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  return {
    what: `${FILE_MIB} MiB on the disk of ${guest.name}, and a reboot`,
    value: `the same, after ${seconds} s`,
    how: `${hasMkfs ? 'ext4' : 'ext2'} on /dev/vda, SHA-256 ${after.slice(0, 12)}...`,
  };
}

async function ping(from: LinuxGuest, to: string): Promise<DemoRow> {
  const output = await from.check(`ping -c 5 -i 0.2 ${to}`);
  const received = /(\d+) packets received/.exec(output)?.[1] ?? '?';
  const times = /= ([\d.]+)\/([\d.]+)\/([\d.]+) ms/.exec(output);
  const value = times === null ? '?' : `min ${times[1]}, mean ${times[2]}, max ${times[3]} ms`;
  return { what: `ping from ${from.name}, ${received} of 5 answered`, value, how: `to ${to}` };
}

async function bulk(from: LinuxGuest, to: LinuxGuest): Promise<DemoRow> {
  const timeoutMs = BULK_TIMEOUT_MS;
  const bytes = BULK_MIB * 1024 * 1024;
  await from.check(`dd if=/dev/urandom of=/tmp/bulk bs=1M count=${BULK_MIB}`, { timeoutMs });
  const sent = (await from.check('sha256sum < /tmp/bulk', { timeoutMs })).slice(0, 64);
  const started = performance.now();
  // Opened for both, the fifo is a standard input that never ends: at its end nc would hang up.
  const receive = 'mkfifo /tmp/open; nc -l -p 5001 <> /tmp/open | sha256sum';
  const receiving = to.check(receive, { timeoutMs });
  const sending = from.check(`for i in 1 2 3 4 5; do ${SEND} && break; sleep 0.3; done`, {
    timeoutMs,
  });
  const [output] = await Promise.all([receiving, sending]);
  const seconds = (performance.now() - started) / 1000;
  const received = output.slice(0, 64);
  if (received !== sent) {
    throw new VringError('ERR_VRING_DEMO', `bulk transfer: sent ${sent}, received ${received}`);
  }
  return {
    what: `${BULK_MIB} MiB over TCP, vm0 to vm1`,
    value: `${((bytes * 8) / seconds / 1e6).toFixed(0)} Mbit/s`,
    how: `SHA-256 ${sent.slice(0, 12)}... on both sides`,
  };
}
