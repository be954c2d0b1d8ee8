/**
 * Programs and files of other packages that a guest needs, and the line that installs each.
 * A missing one is an error that says what to type, not a stack trace of `spawn ENOENT`.
 */
import { accessSync, constants, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { VringError } from '../base/errors.ts';

/** Debian's package of each program or file that we start or read. */
const PACKAGE_OF: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  nbdinfo: 'libnbd-bin',
  nbdcopy: 'libnbd-bin',
  busybox: 'busybox-static',
  'linux kernel': 'linux-image-cloud-amd64',
  'linux headers': 'linux-headers-cloud-amd64',
  'linux source': 'linux-source-6.1',
  virtiofsd: 'qemu-system-common',
  'qemu-storage-daemon': 'qemu-system-common',
  depmod: 'kmod',
  modprobe: 'kmod',
  strip: 'binutils',
  cryptsetup: 'cryptsetup-bin',
  vdpa: 'iproute2',
  'mkfs.ext4': 'e2fsprogs',
  'fsck.ext4': 'e2fsprogs',
  e2fsck: 'e2fsprogs',
  resize2fs: 'e2fsprogs',
  'mkfs.xfs': 'xfsprogs',
  xfs_growfs: 'xfsprogs',
  xfs_repair: 'xfsprogs',
  'grub-mkimage': 'grub-pc-bin',
  ldd: 'libc-bin',
  sg_inq: 'sg3-utils',
  unshare: 'util-linux',
  setpriv: 'util-linux',
  prlimit: 'util-linux',
  'dpdk-testpmd': 'dpdk-dev',
  'ovs-vswitchd': 'openvswitch-switch-dpdk',
  'ovsdb-server': 'openvswitch-switch-dpdk',
  tshark: 'tshark',
  ip: 'iproute2',
  tc: 'iproute2',
  xz: 'xz-utils',
  virsh: 'libvirt-clients',
  'cloud-hypervisor': 'cloud-hypervisor',
};

const SYSTEM_FOLDERS = ['/usr/sbin', '/usr/bin', '/sbin', '/bin', '/usr/lib/qemu'];

/** The command that brings the programs on Debian. */
export function aptLine(...programs: string[]): string {
  const names = new Set(programs.map((program) => PACKAGE_OF[program] ?? program));
  return `apt-get install --no-install-recommends ${[...names].join(' ')}`;
}

/** Where `program` lies: on `PATH`, in the system folders that root has on it, or in QEMU's. */
export function findProgram(program: string): string | null {
  const folders = (process.env['PATH'] ?? '').split(delimiter);
  for (const folder of [...folders, ...SYSTEM_FOLDERS]) {
    if (folder === '') continue;
    const path = join(folder, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  return null;
}

/** @throws VringError `ERR_VRING_MISSING_PROGRAM`, with the apt line. */
export function requireProgram(program: string): string {
  const path = findProgram(program);
  if (path !== null) return path;
  throw missingProgram(program);
}

export function missingProgram(program: string, detail = 'is not installed'): VringError {
  const text = `${program} ${detail}; on Debian: ${aptLine(program)}`;
  return new VringError('ERR_VRING_MISSING_PROGRAM', text);
}

export type Accelerator = 'kvm' | 'tcg';

/**
 * KVM where an ordinary kernel can run on it. `/dev/kvm` alone does not say so: on a machine that
 * is itself a guest without nested virtualisation the node may exist (KVM_PVM) and still not run
 * a distribution's kernel, so the processor must show its extension too.
 */
export function detectAccelerator(): Accelerator {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '';
    return / (vmx|svm)( |$)/.test(flags) ? 'kvm' : 'tcg';
  } catch {
    return 'tcg';
  }
}
