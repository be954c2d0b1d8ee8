/** A guest of QEMU whose disks are ours: what is common to the tests that boot one. */
import {
  type GuestFile,
  guestProgram,
  LinuxGuest,
  type LinuxGuestConfig,
  type VhostUserDisk,
  vhostUserDisks,
} from '../../src/vmm/index.ts';

/** What `requirePeer` must find for `bootDiskGuest`. */
export const DISK_GUEST_PEERS = ['qemu-system-x86_64', 'linux kernel', 'busybox'] as const;

export type DiskGuestOptions = Partial<LinuxGuestConfig> & {
  readonly disks: readonly VhostUserDisk[];
  /** Programs of this machine that the guest has, too. */
  readonly programs?: readonly string[];
};

/** Starts QEMU and returns at once; `waitReady` waits for the guest, which knows ext4 and xfs. */
export function launchDiskGuest(options: DiskGuestOptions): LinuxGuest {
  const { disks, programs = [], files = [], extra = [], ...rest } = options;
  return LinuxGuest.launch({
    name: 'disk-guest',
    ip: null,
    nics: [],
    cpus: 2,
    memoryMib: 256,
    bootTimeoutMs: 150_000, // 5 s alone; a minute was seen where five builds ran beside it
    modules: ['virtio_blk', 'ext4', 'xfs'],
    kernelWords: ['vring.nonet=1'],
    files: [...files, ...programs.flatMap((program): GuestFile[] => guestProgram(program))],
    extra: [...vhostUserDisks(disks), ...extra],
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
