/**
 * A small real Linux guest made of what Debian installs: its cloud kernel, the few modules that a
 * virtio network card needs, and the static busybox. The initramfs is built here, in memory, and
 * kept under the hash of its content, so a changed kernel or script makes a new one.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { ConfigError } from '../base/errors.ts';
import { writeCpio, type CpioEntry } from './cpio.ts';
import { GUEST_INIT } from './guest-init.ts';
import { findKernel, moduleLoadOrder, readModule, type InstalledKernel } from './kernel-modules.ts';
import { missingProgram, requireProgram } from './programs.ts';
import type { GuestKernel } from './qemu.ts';

/** What the guest's card needs; the rest of the kernel's modules stays out. */
const GUEST_MODULES = ['virtio_pci', 'virtio_net'];

export type LinuxGuestOptions = {
  /** Static addresses of eth0 with prefix length: `10.0.0.2/24`, comma-separated. */
  readonly ip: string | null;
  readonly gateway?: string | null;
  readonly mtu?: number | null;
  readonly hostName?: string | null;
  /** `script` is what `LinuxGuest` drives; `interactive` is a shell for people. */
  readonly shell: 'script' | 'interactive';
  /** Further kernel modules, for instance `8021q`; loaded after the card's. */
  readonly modules?: readonly string[];
  /** Further words for the kernel's command line, for instance `intel_iommu=on`. */
  readonly kernelWords?: readonly string[];
  /** Further files; of two with one path the first stays. */
  readonly files?: readonly GuestFile[];
};

/** A file of this machine in the guest, with its mode. `path` is relative: `bin/fsx`. */
export type GuestFile = { readonly path: string; readonly source: string };

/**
 * Kernel, initramfs and command line of the guest; builds the initramfs when it is not cached.
 * @throws VringError `ERR_VRING_MISSING_PROGRAM` when the kernel or busybox is not installed.
 */
export function linuxGuestKernel(options: LinuxGuestOptions): GuestKernel {
  const kernel = findKernel();
  const modules = [...GUEST_MODULES, ...(options.modules ?? [])];
  const initrd = buildInitramfs(kernel, modules, options.files);
  return { image: kernel.image, initrd, commandLine: kernelCommandLine(options) };
}

export function kernelCommandLine(options: LinuxGuestOptions): string {
  // reboot=t: a triple fault ends or restarts every machine type at once. mitigations=off: under
  // TCG they cost time and protect nothing. panic=-1: reboot at once instead of hanging.
  const words = ['console=ttyS0', 'quiet', 'loglevel=1', 'panic=-1', 'reboot=t', 'mitigations=off'];
  const add = (key: string, value: string | number | null | undefined): void => {
    if (value === null || value === undefined) return;
    if (!/^[0-9A-Za-z.,:/_-]+$/.test(String(value))) {
      throw new ConfigError(key, `'${value}' cannot stand on a kernel command line`);
    }
    words.push(`vring.${key}=${value}`);
  };
  add('ip', options.ip);
  add('gw', options.gateway);
  add('mtu', options.mtu);
  add('name', options.hostName);
  add('shell', options.shell);
  for (const word of options.kernelWords ?? []) {
    if (!/^[0-9A-Za-z.,:=/_-]+$/.test(word)) {
      throw new ConfigError('kernelWords', `'${word}' cannot stand on a kernel command line`);
    }
    words.push(word);
  }
  return words.join(' ');
}

/** `$XDG_CACHE_HOME/vring`, by default `~/.cache/vring`. */
export function cachePath(): string {
  const base = process.env['XDG_CACHE_HOME'];
  return join(base !== undefined && base !== '' ? base : join(homedir(), '.cache'), 'vring');
}

/** Path of the initramfs with these modules; its name holds the hash of its content. */
export function buildInitramfs(
  kernel: InstalledKernel,
  modules: readonly string[],
  files: readonly GuestFile[] = [],
): string {
  const archive = writeCpio([...initramfsEntries(kernel, modules), ...fileEntries(files)]);
  const hash = createHash('sha256').update(archive).digest('hex').slice(0, 16);
  const path = join(cachePath(), `guest-${kernel.release}-${hash}.cpio`);
  if (existsSync(path)) return path;
  mkdirSync(cachePath(), { recursive: true });
  const partial = `${path}.${process.pid}`; // two processes may build it at once
  writeFileSync(partial, archive);
  renameSync(partial, path);
  return path;
}

/** Files with the folders that they lie in; a folder that is there already changes nothing. */
function fileEntries(files: readonly GuestFile[]): CpioEntry[] {
  const entries = new Map<string, CpioEntry>();
  const addFolder = (path: string): void => {
    if (path === '.' || entries.has(path)) return;
    addFolder(dirname(path));
    entries.set(path, { kind: 'directory', path, mode: 0o755 });
  };
  for (const { path, source } of files) {
    if (entries.has(path)) continue;
    addFolder(dirname(path));
    const mode = statSync(source).mode & 0o777;
    entries.set(path, { kind: 'file', path, mode, bytes: readFileSync(source) });
  }
  return [...entries.values()];
}

/** The guest's file system without further files. */
export function initramfsEntries(kernel: InstalledKernel, modules: readonly string[]): CpioEntry[] {
  const busybox = readStaticBusybox();
  const entries: CpioEntry[] = [];
  for (const path of [
    'bin',
    'dev',
    'etc',
    'lib',
    'lib/modules',
    'proc',
    'root',
    'run',
    'sys',
    'tmp',
  ]) {
    entries.push({ kind: 'directory', path, mode: 0o755 });
  }
  entries.push({ kind: 'character', path: 'dev/console', mode: 0o600, major: 5, minor: 1 });
  entries.push({ kind: 'file', path: 'bin/busybox', mode: 0o755, bytes: busybox });
  for (const applet of APPLETS) {
    entries.push({ kind: 'symlink', path: `bin/${applet}`, target: 'busybox' });
  }
  const names: string[] = [];
  for (const path of moduleLoadOrder(kernel.modulesPath, modules)) {
    const name = basename(path).replace(/\.ko\.\w+$/, '.ko');
    const bytes = readModule(join(kernel.modulesPath, path));
    entries.push({ kind: 'file', path: `lib/modules/${name}`, mode: 0o644, bytes });
    names.push(name);
  }
  const list = Buffer.from(names.map((name) => `${name}\n`).join(''));
  entries.push({ kind: 'file', path: 'etc/modules', mode: 0o644, bytes: list });
  entries.push({ kind: 'file', path: 'init', mode: 0o755, bytes: Buffer.from(GUEST_INIT) });
  return entries;
}

/** Busybox commands with a name of their own in the guest. */
const APPLETS = (
  'sh [ arp arping ash awk base64 basename cat chmod cmp cp cttyhack cut date dd df dmesg ' +
  'echo env expr false find free grep gunzip gzip head hexdump hostname id ifconfig insmod ip ' +
  'kill killall ln ls lsmod md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nproc ' +
  'od ping ping6 pkill poweroff printf ps pwd readlink reboot rm rmdir rmmod route sed seq ' +
  'setsid sha256sum shuf sleep sort stat stty sync sysctl tail tar taskset telnet test time ' +
  'timeout top touch tr traceroute true tty udhcpc umount uname uniq uptime usleep vconfig vi ' +
  'wc wget which xargs xxd yes zcat'
).split(' ');

/** @throws VringError when busybox is missing, or needs shared libraries that the guest lacks. */
export function readStaticBusybox(): Uint8Array {
  const bytes = readFileSync(requireProgram('busybox'));
  if (!isStaticElf(bytes)) throw missingProgram('busybox', 'is not the static build');
  return bytes;
}

/** An ELF64 file without an interpreter (PT_INTERP = 3). Layout: elf(5). */
function isStaticElf(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 64 || view.getUint32(0, false) !== 0x7f454c46) return false;
  const at = Number(view.getBigUint64(32, true)); // e_phoff
  const entryBytes = view.getUint16(54, true); //    e_phentsize
  const count = view.getUint16(56, true); //         e_phnum
  for (let i = 0; i < count; i++) {
    if (view.getUint32(at + i * entryBytes, true) === 3) return false;
  }
  return true;
}
