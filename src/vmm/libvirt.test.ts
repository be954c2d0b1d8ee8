import { equal, match, ok, throws } from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { MACHINE, NIC } from './fixture.ts';
import { cloudHypervisorCommand } from './cloud-hypervisor.ts';
import { libvirtDomain, libvirtInterface } from './libvirt.ts';
import { findProgram } from './programs.ts';

const SCHEMA = process.env['LIBVIRT_SCHEMA'] ?? '/usr/share/libvirt/schemas/domain.rng';
const kernel = { image: '/boot/vmlinuz', initrd: '/boot/initrd', commandLine: `a="b" c<d` };
const NICS = [
  { ...NIC, queuePairs: 2, packed: true, mtu: 1500, rxQueueSize: 512 },
  { ...NIC, mode: 'server', mrgRxbuf: false, mac: null } as const,
];
const DOMAINS = {
  'a guest with a disk': libvirtDomain(MACHINE),
  'two cards and a kernel': libvirtDomain({ ...MACHINE, nics: NICS, kernel, disk: null }),
  'behind an IOMMU': libvirtDomain({
    ...MACHINE,
    nics: [{ ...NIC, iommuPlatform: true }],
    iommu: true,
  }),
  'without KVM': libvirtDomain({ ...MACHINE, accelerator: 'tcg', hugePages: true }),
};

test('memory is shared and the interface is vhostuser', () => {
  const xml = DOMAINS['a guest with a disk'];
  match(xml, /<memoryBacking>\s*<source type='memfd'\/>\s*<access mode='shared'\/>/);
  match(xml, /<source type='unix' path='\/run\/vring\/vm0.sock' mode='client'>/);
  match(libvirtInterface(NICS[1]!), /<driver>\n +<host mrg_rxbuf='off'\/>/);
  match(libvirtInterface(NICS[0]!), /<driver queues='2' rx_queue_size='512' packed='on'\/>/);
  match(DOMAINS['behind an IOMMU'], /<driver iommu='on' ats='on'\/>/);
  match(DOMAINS['behind an IOMMU'], /<driver intremap='off' iotlb='on'\/>/);
  match(DOMAINS['two cards and a kernel'], /<cmdline>a=&quot;b&quot; c&lt;d<\/cmdline>/);
});

test('every element is closed in order', () => {
  for (const xml of Object.values(DOMAINS)) {
    const open: string[] = [];
    for (const [, close, name, self] of xml.matchAll(/<(\/?)([\w:]+)[^>]*?(\/?)>/g)) {
      if (close === '/') equal(open.pop(), name);
      else if (self !== '/') open.push(name as string);
    }
    equal(open.length, 0);
  }
});

test("libvirt's own schema accepts it", (t) => {
  const xmllint = findProgram('xmllint');
  if (xmllint === null || !existsSync(SCHEMA)) {
    const reason = 'apt-get install --no-install-recommends libvirt0 libxml2-utils';
    if (process.env['VRING_REQUIRE_PEERS'] === '1') throw new Error(reason);
    return t.skip(reason);
  }
  for (const [name, xml] of Object.entries(DOMAINS)) {
    const args = ['--noout', '--relaxng', SCHEMA, '-'];
    const result: { status: number | null; stderr: string } = spawnSync(xmllint, args, {
      input: xml,
      encoding: 'utf8',
    });
    equal(result.status, 0, `${name}: ${result.stderr}`);
  }
});

test('Cloud Hypervisor counts rings and wants shared memory', () => {
  const argv = cloudHypervisorCommand({ ...MACHINE, nics: NICS });
  ok(argv.includes('size=512M,shared=on'));
  const net = argv[argv.indexOf('--net') + 1] ?? '';
  throws(() => cloudHypervisorCommand({ ...MACHINE, iommu: true }), { path: 'iommu' });
  match(net, /^vhost_user=true,socket=\/run\/vring\/vm0.sock,vhost_mode=client,num_queues=4,/);
});
