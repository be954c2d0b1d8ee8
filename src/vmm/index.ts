export { findProgram, requireProgram, aptLine, detectAccelerator } from './programs.ts';
export type { Accelerator } from './programs.ts';
export { qemuCommand, shellCommand, shellWord, macFromName } from './qemu.ts';
export type {
  GuestDisk,
  GuestKernel,
  GuestMachine,
  GuestNic,
  MemoryHotplug,
  QemuOptions,
} from './qemu.ts';
export { vhostUserDisks } from './qemu-disks.ts';
export type { VhostUserDisk } from './qemu-disks.ts';
export { libvirtDomain, libvirtInterface } from './libvirt.ts';
export { cloudHypervisorCommand } from './cloud-hypervisor.ts';
export { buildInitramfs, cachePath, kernelCommandLine, linuxGuestKernel } from './linux-guest.ts';
export type { GuestFile, LinuxGuestOptions } from './linux-guest.ts';
export { guestProgram } from './guest-programs.ts';
export { findKernel } from './kernel-modules.ts';
export type { InstalledKernel } from './kernel-modules.ts';
export { LinuxGuest } from './qemu-process.ts';
export type { CommandResult, LinuxGuestConfig } from './qemu-process.ts';
export { migrateGuest } from './migration.ts';
export type { MigrationOptions, MigrationResult, MigrationStatus } from './migration.ts';
export { QmpClient } from './qmp.ts';
export type { QmpEvent } from './qmp.ts';
export { childExit, endChild, OutputTail, startChild } from './child-processes.ts';
export type { ExitStatus } from './child-processes.ts';
export { vringCommand, VringService } from './vring-process.ts';
