/** A machine for the tests of the command lines. */
import type { GuestMachine, GuestNic } from './qemu.ts';

export const NIC: GuestNic = {
  path: '/run/vring/vm0.sock',
  mode: 'client',
  queuePairs: 1,
  packed: false,
  mrgRxbuf: true,
  mac: '52:54:00:00:00:01',
  mtu: null,
};

export const MACHINE: GuestMachine = {
  name: 'vm0',
  accelerator: 'kvm',
  cpus: 1,
  memoryMib: 512,
  hugePages: false,
  nics: [NIC],
  kernel: null,
  disk: { path: '/srv/vm 0.qcow2', format: 'qcow2' },
};
