/** The command line of the test host's QEMU, and of the kernel in it. Pure. */
import type { Accelerator } from '../../src/vmm/programs.ts';
import { CONTROL_PORT, SHARE_TAG } from './init.ts';
import type { MachineOptions } from './host-file.ts';

/**
 * `cards=vp-vdpa-pair`: what the device under test sends, the other card receives, so a machine
 * sees both ends of its wire. The device is behind the IOMMU, without which vhost-vdpa takes no
 * device that cannot translate by itself (drivers/vhost/vdpa.c, vhost_vdpa_alloc_domain), and has
 * a page per queue, without which it has no notify areas.
 */
export const VP_VDPA_PAIR = {
  device: { pci: '0000:00:10.0', mac: '52:54:00:00:10:01' },
  peer: { pci: '0000:00:11.0', mac: '52:54:00:00:10:02' },
} as const;

export type MachinePaths = {
  readonly qemu: string;
  readonly kernel: string;
  readonly initramfs: string;
  readonly shareSocket: string;
  /** Unix sockets that we listen on; null: the console is this terminal, nothing is served. */
  readonly console: string | null;
  readonly control: string | null;
  /** Unix socket that QEMU listens on. */
  readonly qmp: string;
};

export function machineCommand(
  options: MachineOptions,
  paths: MachinePaths,
  accelerator: Accelerator,
): string[] {
  const { memoryMib, cpus, cards } = options;
  const withIommu = cards === 'vp-vdpa-pair';
  const isKvm = accelerator === 'kvm';
  const words = [paths.qemu, '-name', 'vring-test-host'];
  const add = (...more: string[]): number => words.push(...more);
  add('-machine', `q35,memory-backend=memory${withIommu ? ',kernel-irqchip=split' : ''}`);
  add('-accel', isKvm ? 'kvm' : 'tcg,thread=multi', '-cpu', isKvm ? 'host' : 'max');
  add('-smp', String(cpus), '-m', String(memoryMib));
  // Shared, because virtiofsd reads and writes it.
  add('-object', `memory-backend-memfd,id=memory,size=${memoryMib}M,share=on`);
  add('-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot');
  add('-kernel', paths.kernel, '-initrd', paths.initramfs);
  add('-append', kernelWords(withIommu));
  if (withIommu) add('-device', 'intel-iommu,intremap=off');
  add('-qmp', `unix:${paths.qmp},server=on,wait=off`);
  if (paths.console === null) {
    // Keys go to the machine, Ctrl-C too; Ctrl-A X ends QEMU.
    add('-chardev', 'stdio,id=console,mux=on,signal=off', '-mon', 'chardev=console');
  } else {
    add('-chardev', `socket,id=console,path=${paths.console}`);
  }
  add('-serial', 'chardev:console');
  add('-chardev', `socket,id=share,path=${paths.shareSocket}`);
  add('-device', `vhost-user-fs-pci,chardev=share,tag=${SHARE_TAG},queue-size=1024`);
  if (paths.control !== null) {
    add('-device', 'virtio-serial-pci', '-chardev', `socket,id=control,path=${paths.control}`);
    add('-device', `virtserialport,chardev=control,name=${CONTROL_PORT}`);
  }
  if (cards === 'vp-vdpa-pair') add(...cardPair());
  return words;
}

function cardPair(): string[] {
  const slot = (pci: string): string => `addr=0x${pci.slice(8, 10)}`;
  const { device, peer } = VP_VDPA_PAIR;
  // vp_vdpa wants an MSI-X vector per queue and one more: two for data, one for control.
  const behindIommu = 'disable-legacy=on,iommu_platform=on,page-per-vq=on,packed=on,vectors=4';
  const card = `virtio-net-pci,netdev=wire0,${slot(device.pci)},mac=${device.mac},${behindIommu}`;
  const peerCard = `virtio-net-pci,netdev=wire1,${slot(peer.pci)},mac=${peer.mac}`;
  const words = ['-netdev', 'hubport,hubid=0,id=wire0', '-netdev', 'hubport,hubid=0,id=wire1'];
  return [...words, '-device', card, '-device', peerCard];
}

function kernelWords(withIommu: boolean): string {
  // loglevel=5: warnings reach the console, where the runner looks for them. oops=panic and
  // panic=-1: a broken kernel ends QEMU at once. sysrq: the runner asks a hanging one where it is.
  const words = ['console=ttyS0', 'quiet', 'loglevel=5', 'oops=panic', 'panic=-1', 'reboot=t'];
  words.push('mitigations=off', 'sysrq_always_enabled');
  if (withIommu) words.push('intel_iommu=on');
  return words.join(' ');
}
