/**
 * A disk that boots by itself, as an installation of Debian on a BIOS machine has it: GRUB in the
 * master boot record and behind it, one partition with ext4, and on it kernel, initramfs and the
 * root file system, which is our small guest's.
 */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { findKernel, kernelCommandLine, linuxGuestKernel } from '../../src/vmm/index.ts';
import { initramfsEntries } from '../../src/vmm/linux-guest.ts';

export const BOOT_DISK_PEERS = ['grub-mkimage', 'mkfs.ext4', 'linux kernel', 'busybox'] as const;

const GRUB = '/usr/lib/grub/i386-pc'; // package grub-pc-bin
const SECTOR_BYTES = 512;
const PARTITION_SECTOR = 2048;
export const PARTITION_OFFSET = PARTITION_SECTOR * SECTOR_BYTES;

/** What Linux has to know to find its root there. */
export type BootDevice = { readonly node: string; readonly modules: readonly string[] };
export const BOOT_BLK: BootDevice = { node: 'vda', modules: ['virtio_blk'] };

/** A file of `sizeBytes`; what it needs meanwhile is in `folder`. */
export function makeBootDisk(
  path: string,
  folder: string,
  sizeBytes: number,
  device: BootDevice = BOOT_BLK,
): void {
  const tree = join(folder, 'root');
  writeRoot(tree, device);
  const core = join(folder, 'core.img');
  makeGrub(core, folder, device);
  closeSync(openSync(path, 'w'));
  truncateSync(path, sizeBytes);
  const blocks = `${(sizeBytes - PARTITION_OFFSET) / 1024}K`;
  const words = ['-q', '-F', '-d', tree, '-E', `offset=${PARTITION_OFFSET}`, path, blocks];
  execFileSync('mkfs.ext4', words, { stdio: 'pipe' });
  const disk = openSync(path, 'r+');
  writeSync(disk, masterBootRecord(sizeBytes), 0, SECTOR_BYTES, 0);
  writeSync(disk, readFileSync(core), 0, null, SECTOR_BYTES);
  closeSync(disk);
}

/** What is in the guest's initramfs, on a disk; and the initramfs that finds it. */
function writeRoot(tree: string, device: BootDevice): void {
  const installed = findKernel();
  mkdirSync(join(tree, 'boot'), { recursive: true });
  for (const entry of initramfsEntries(installed, [])) {
    const path = join(tree, entry.path);
    mkdirSync(dirname(path), { recursive: true });
    if (entry.kind === 'directory') mkdirSync(path, { recursive: true });
    if (entry.kind === 'symlink') symlinkSync(entry.target, path);
    if (entry.kind === 'file') writeFileSync(path, entry.bytes, { mode: entry.mode });
  }
  writeFileSync(join(tree, 'etc/modules'), ''); // they are loaded by then
  const modules = [...device.modules, 'ext4'];
  const { image, initrd } = linuxGuestKernel({ ip: null, shell: 'script', modules });
  writeFileSync(join(tree, 'boot/vmlinuz'), readFileSync(image));
  writeFileSync(join(tree, 'boot/initrd'), readFileSync(initrd!));
}

/** GRUB's core image, with all that it needs to find the kernel; its own words for it inside. */
function makeGrub(core: string, folder: string, { node }: BootDevice): void {
  const kernelWords = ['vring.nonet=1', `vring.root=/dev/${node}1`];
  const words = kernelCommandLine({ ip: null, shell: 'script', kernelWords });
  const config = join(folder, 'grub.cfg');
  const at = '(hd0,msdos1)/boot';
  writeFileSync(config, `linux ${at}/vmlinuz ${words}\ninitrd ${at}/initrd\nboot\n`);
  const modules = ['biosdisk', 'part_msdos', 'ext2', 'linux', 'boot'];
  const options = ['-O', 'i386-pc', '-d', GRUB, '-p', `${at}/grub`, '-c', config, '-o', core];
  execFileSync('grub-mkimage', [...options, ...modules], { stdio: 'pipe' });
}

/** GRUB's first sector, which loads what follows it, and one partition up to the end. */
function masterBootRecord(sizeBytes: number): Buffer {
  const sector = Buffer.alloc(SECTOR_BYTES);
  readFileSync(join(GRUB, 'boot.img')).copy(sector, 0, 0, 440);
  const entry = 446;
  sector[entry] = 0x80; //    to boot from
  sector[entry + 4] = 0x83; // Linux
  sector.writeUInt32LE(PARTITION_SECTOR, entry + 8);
  sector.writeUInt32LE(sizeBytes / SECTOR_BYTES - PARTITION_SECTOR, entry + 12);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}
