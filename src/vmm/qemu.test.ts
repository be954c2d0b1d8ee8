import { deepEqual, equal, match, ok, throws } from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { MACHINE, NIC } from './fixture.ts';
import { macFromName, qemuCommand, shellCommand } from './qemu.ts';

function valueOf(argv: readonly string[], option: string): string {
  return argv[argv.indexOf(option) + 1] ?? '';
}

test('a guest shares its memory and its card hangs on the port', () => {
  const argv = qemuCommand(MACHINE);
  equal(valueOf(argv, '-object'), 'memory-backend-memfd,id=mem,size=512M,share=on');
  equal(valueOf(argv, '-machine'), 'q35,memory-backend=mem');
  equal(valueOf(argv, '-chardev'), 'socket,id=port0,path=/run/vring/vm0.sock,reconnect=1');
  equal(valueOf(argv, '-netdev'), 'vhost-user,id=net0,chardev=port0,queues=1');
  equal(valueOf(argv, '-device'), 'virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01');
});

test('options of the card reach the command line', () => {
  const nic = { ...NIC, mode: 'server', queuePairs: 2, packed: true, mrgRxbuf: false } as const;
  const argv = qemuCommand({ ...MACHINE, nics: [{ ...nic, mtu: 9000, rxQueueSize: 1024 }] });
  equal(valueOf(argv, '-chardev'), 'socket,id=port0,path=/run/vring/vm0.sock,server=on');
  const device = valueOf(argv, '-device').split(',');
  const wanted = ['mq=on', 'packed=on', 'mrg_rxbuf=off', 'host_mtu=9000', 'rx_queue_size=1024'];
  for (const word of wanted) ok(device.includes(word), word);
  ok(device.includes('vectors=6'), 'one vector per ring, config and control');
});

test('without KVM the card has no MSI-X', () => {
  const argv = qemuCommand({ ...MACHINE, accelerator: 'tcg' });
  match(valueOf(argv, '-device'), /,vectors=0$/);
  match(valueOf(argv, '-accel'), /^tcg/);
});

test('an IOMMU comes before the cards that are behind it', () => {
  const nics = [{ ...NIC, iommuPlatform: true }];
  const argv = qemuCommand({ ...MACHINE, nics, iommu: true });
  equal(valueOf(argv, '-machine'), 'q35,memory-backend=mem,kernel-irqchip=split');
  equal(valueOf(argv, '-device'), 'intel-iommu,intremap=off,device-iotlb=on');
  ok(argv.some((word) => /^virtio-net-pci,.*,bus=root0,.*iommu_platform=on,ats=on$/.test(word)));
  ok(argv.includes('pcie-root-port,id=root0,chassis=1'));
  throws(() => qemuCommand({ ...MACHINE, nics }), { path: 'iommu' });
});

test('a machine may have room for more memory, or wait for a migration', () => {
  const hotplug = { slots: 4, maxMib: 1024 };
  const argv = qemuCommand({ ...MACHINE, hotplug }, { incoming: true });
  equal(valueOf(argv, '-m'), '512M,slots=4,maxmem=1024M');
  equal(valueOf(argv, '-incoming'), 'defer');
  const bad = { ...MACHINE, hotplug: { slots: 4, maxMib: 512 } };
  throws(() => qemuCommand(bad), { path: 'maxMib' });
  throws(() => qemuCommand({ ...bad, hotplug: { slots: 0, maxMib: 1024 } }), { path: 'slots' });
});

test('commas in paths are doubled, as QEMU wants them', () => {
  const argv = qemuCommand({ ...MACHINE, nics: [{ ...NIC, path: '/tmp/a,b' }] });
  match(valueOf(argv, '-chardev'), /path=\/tmp\/a,,b,/);
});

test('what QEMU would refuse is refused by name', () => {
  const bad = (nic: object): void => void qemuCommand({ ...MACHINE, nics: [{ ...NIC, ...nic }] });
  throws(() => bad({ mac: '52:54' }), { code: 'ERR_VRING_CONFIG', path: 'mac' });
  throws(() => bad({ queuePairs: 0 }), { path: 'queues' });
  throws(() => bad({ path: `/${'x'.repeat(107)}` }), { path: 'socket' });
  throws(() => bad({ mtu: 67 }), { path: 'mtu' });
  throws(() => qemuCommand({ ...MACHINE, memoryMib: 1.5 }), { path: 'memory' });
});

test('the printed text is what a shell reads back as the same words', () => {
  const argv = ['printf', '%s\\n', "it's", 'two words', '$HOME', '', 'a*b', '-x', 'y'];
  for (const wrap of [true, false]) {
    const shell = spawnSync('sh', ['-c', shellCommand(argv, wrap)], { encoding: 'utf8' });
    deepEqual(shell.stdout.split('\n').slice(0, -1), argv.slice(2));
  }
});

test('addresses made from names are stable and local', () => {
  equal(macFromName('vm0'), macFromName('vm0'));
  ok(macFromName('vm0') !== macFromName('vm1'));
  match(macFromName('vm0'), /^52:54:00(:[0-9a-f]{2}){3}$/);
});
