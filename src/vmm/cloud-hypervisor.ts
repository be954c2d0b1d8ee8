/**
 * The Cloud Hypervisor command line of a guest on a vhost-user port. Options as its own
 * `docs/` and `cloud-hypervisor --help` give them (`--net vhost_user=true`); not run in our tests,
 * because Debian 12 has no package of it and it needs KVM.
 */
import { ConfigError } from '../base/errors.ts';
import type { GuestMachine, GuestNic } from './qemu.ts';

/** @throws ConfigError for what Cloud Hypervisor cannot do. */
export function cloudHypervisorCommand(machine: GuestMachine): string[] {
  if (machine.accelerator !== 'kvm') {
    throw new ConfigError('accel', 'Cloud Hypervisor runs on KVM only');
  }
  if (machine.iommu) {
    throw new ConfigError('iommu', 'this form has none for Cloud Hypervisor; use QEMU or libvirt');
  }
  const argv = ['cloud-hypervisor', '--cpus', `boot=${machine.cpus}`];
  const huge = machine.hugePages ? ',hugepages=on,hugepage_size=2M' : '';
  // shared=on: vhost-user back-ends map the guest's memory.
  argv.push('--memory', `size=${machine.memoryMib}M,shared=on${huge}`);
  if (machine.kernel !== null) {
    argv.push('--kernel', machine.kernel.image);
    if (machine.kernel.initrd !== null) argv.push('--initramfs', machine.kernel.initrd);
    if (machine.kernel.commandLine !== '') argv.push('--cmdline', machine.kernel.commandLine);
  }
  if (machine.disk !== null) argv.push('--disk', `path=${machine.disk.path}`);
  if (machine.nics.length > 0) argv.push('--net', ...machine.nics.map(netOption));
  argv.push('--console', 'off', '--serial', 'tty');
  return argv;
}

function netOption(nic: GuestNic): string {
  const parts = ['vhost_user=true', `socket=${nic.path}`, `vhost_mode=${nic.mode}`];
  // It counts rings, not pairs.
  parts.push(`num_queues=${2 * nic.queuePairs}`, `queue_size=${nic.rxQueueSize ?? 256}`);
  if (nic.mac !== null) parts.push(`mac=${nic.mac}`);
  if (nic.mtu !== null) parts.push(`mtu=${nic.mtu}`);
  return parts.join(',');
}
