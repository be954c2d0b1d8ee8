/** A guest of QEMU whose disks are ours: what is common to the tests that boot one. */
import {
  type GuestFile,
  guestProgram,
  LinuxGuest,
  type LinuxGuestConfig,
  type VhostUserDisk,
  vhostUserDisks,
} from '../../src/vmm/index.ts';
import { waitFor } from './scratch.ts';

/** What `requirePeer` must find for `bootDiskGuest`. */
export const DISK_GUEST_PEERS = ['qemu-system-x86_64', 'linux kernel', 'busybox'] as const;

export type DiskGuestOptions = Partial<LinuxGuestConfig> & {
  readonly disks: readonly VhostUserDisk[];
  /** A SCSI host adapter, with what disks it has. */
  readonly adapter?: {
    readonly socket: string;
    readonly queues: number;
    readonly bootIndex?: number;
  };
  /** Programs of this machine that the guest has, too. */
  readonly programs?: readonly string[];
};

/** What finds a SCSI adapter and its disks in Linux. */
export const SCSI_MODULES = ['virtio_scsi', 'sd_mod'];

/** This QEMU does not reconnect to one. */
function adapterWords(adapter: DiskGuestOptions['adapter']): string[] {
  if (adapter === undefined) return [];
  const { socket, queues, bootIndex } = adapter;
  const boot = bootIndex === undefined ? '' : `,bootindex=${bootIndex}`;
  const device = `vhost-user-scsi-pci,chardev=scsi0,num_queues=${queues}${boot}`;
  return ['-chardev', `socket,id=scsi0,path=${socket}`, '-device', device];
}

/**
 * Which name Linux gave to the disk (or another `kind`) of a unit, `0:0:1:0`: in the order in which
 * it found them, which varies.
 */
export function nameOfUnit(guest: LinuxGuest, unit: string, kind = 'block'): Promise<string> {
  const path = `/sys/class/scsi_device/${unit}/device/${kind}`;
  return waitFor(`${kind} of unit ${unit}`, 10_000, async () => {
    const { status, output } = await guest.run(`ls ${path}`);
    const name = output.trim();
    if (status !== 0 || name === '') return undefined;
    return (await guest.run(`test -e /dev/${name}`)).status === 0 ? name : undefined;
  });
}

/** Starts QEMU and returns at once; `waitReady` waits for the guest, which knows ext4 and xfs. */
export function launchDiskGuest(options: DiskGuestOptions): LinuxGuest {
  const { disks, adapter, programs = [], files = [], extra = [], ...rest } = options;
  return LinuxGuest.launch({
    name: 'disk-guest',
    ip: null,
    nics: [],
    cpus: 2,
    memoryMib: 256,
    bootTimeoutMs: 150_000, // 5 s alone; a minute was seen where five builds ran beside it
    modules: [...(adapter === undefined ? ['virtio_blk'] : SCSI_MODULES), 'ext4', 'xfs'],
    kernelWords: ['vring.nonet=1'],
    files: [...files, ...programs.flatMap((program): GuestFile[] => guestProgram(program))],
    extra: [...vhostUserDisks(disks), ...adapterWords(adapter), ...extra],
    ...rest,
  });
}

/** Lines of the guest's kernel log that somebody should look at. */
export async function kernelComplaints(guest: LinuxGuest): Promise<string[]> {
  const log = await guest.check('dmesg');
  const bad = /I\/O error|EXT4-fs (error|warning)|BUG:|blocked for more/;
  const xfs = /XFS.*(error|corrupt|shut ?down)/i;
  return log.split('\n').filter((line) => bad.test(line) || xfs.test(line));
}
