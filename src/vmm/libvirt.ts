/**
 * libvirt's description of a guest on a vhost-user port: a whole `<domain>` for `virsh create`,
 * or the `<interface>` alone for `virsh attach-device`. Format: libvirt.org/formatdomain.html,
 * "vhost-user interface".
 */
import type { GuestMachine, GuestNic } from './qemu.ts';

/** The `<interface>` element; `indent` spaces before each line. */
export function libvirtInterface(nic: GuestNic, indent = 0): string {
  const pad = ' '.repeat(indent);
  const lines = [`<interface type='vhostuser'>`];
  if (nic.mac !== null) lines.push(`  <mac address='${escape(nic.mac)}'/>`);
  const source = `  <source type='unix' path='${escape(nic.path)}' mode='${nic.mode}'`;
  if (nic.mode === 'client') {
    lines.push(`${source}>`, `    <reconnect enabled='yes' timeout='1'/>`, `  </source>`);
  } else {
    lines.push(`${source}/>`);
  }
  lines.push(`  <model type='virtio'/>`);
  lines.push(...driverElement(nic).map((line) => `  ${line}`));
  if (nic.mtu !== null) lines.push(`  <mtu size='${nic.mtu}'/>`);
  lines.push(`</interface>`);
  return lines.map((line) => pad + line).join('\n');
}

function driverElement(nic: GuestNic): string[] {
  let attributes = '';
  if (nic.queuePairs > 1) attributes += ` queues='${nic.queuePairs}'`;
  if (nic.rxQueueSize != null) attributes += ` rx_queue_size='${nic.rxQueueSize}'`;
  if (nic.txQueueSize != null) attributes += ` tx_queue_size='${nic.txQueueSize}'`;
  if (nic.packed) attributes += ` packed='on'`;
  if (nic.iommuPlatform) attributes += ` iommu='on' ats='on'`;
  if (nic.mrgRxbuf) return attributes === '' ? [] : [`<driver${attributes}/>`];
  return [`<driver${attributes}>`, `  <host mrg_rxbuf='off'/>`, `</driver>`];
}

/** A complete domain, ready for `virsh create FILE`. */
export function libvirtDomain(machine: GuestMachine): string {
  const tcg = machine.accelerator === 'tcg';
  const namespace = tcg ? ` xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'` : '';
  const lines = [`<domain type='${tcg ? 'qemu' : 'kvm'}'${namespace}>`];
  lines.push(`  <name>${escape(machine.name)}</name>`);
  lines.push(`  <memory unit='MiB'>${machine.memoryMib}</memory>`);
  // The back-end maps guest memory, so it must be shared and have a file descriptor.
  lines.push(`  <memoryBacking>`);
  if (machine.hugePages) {
    lines.push(`    <hugepages>`, `      <page size='2' unit='MiB'/>`, `    </hugepages>`);
  }
  lines.push(`    <source type='memfd'/>`, `    <access mode='shared'/>`, `  </memoryBacking>`);
  lines.push(`  <vcpu>${machine.cpus}</vcpu>`);
  lines.push(...osElement(machine));
  lines.push(`  <features>`, `    <acpi/>`, `  </features>`);
  lines.push(tcg ? `  <cpu mode='maximum'/>` : `  <cpu mode='host-passthrough'/>`);
  lines.push(`  <devices>`);
  if (machine.disk !== null) {
    lines.push(`    <disk type='file' device='disk'>`);
    lines.push(`      <driver name='qemu' type='${machine.disk.format}'/>`);
    lines.push(`      <source file='${escape(machine.disk.path)}'/>`);
    lines.push(`      <target dev='vda' bus='virtio'/>`, `    </disk>`);
  }
  for (const nic of machine.nics) lines.push(libvirtInterface(nic, 4));
  if (machine.iommu) {
    // QEMU remaps interrupts without KVM by default, and cards without MSI-X get none then.
    const driver = `      <driver intremap='off' iotlb='on'/>`;
    lines.push(`    <iommu model='intel'>`, driver, `    </iommu>`);
  }
  lines.push(`    <serial type='pty'/>`, `    <console type='pty'/>`, `  </devices>`);
  if (tcg) lines.push(...withoutMsix(machine));
  lines.push(`</domain>`);
  return `${lines.join('\n')}\n`;
}

/** QEMU 7.2 dies under TCG when vhost-user meets MSI-X, see qemu.ts; libvirt >= 8.2 overrides. */
function withoutMsix(machine: GuestMachine): string[] {
  const lines = [`  <qemu:override>`];
  machine.nics.forEach((_, index) => {
    lines.push(`    <qemu:device alias='net${index}'>`, `      <qemu:frontend>`);
    lines.push(`        <qemu:property name='vectors' type='unsigned' value='0'/>`);
    lines.push(`      </qemu:frontend>`, `    </qemu:device>`);
  });
  lines.push(`  </qemu:override>`);
  return lines;
}

function osElement(machine: GuestMachine): string[] {
  const lines = [`  <os>`, `    <type arch='x86_64' machine='q35'>hvm</type>`];
  if (machine.kernel !== null) {
    const { image, initrd, commandLine } = machine.kernel;
    lines.push(`    <kernel>${escape(image)}</kernel>`);
    if (initrd !== null) lines.push(`    <initrd>${escape(initrd)}</initrd>`);
    if (commandLine !== '') lines.push(`    <cmdline>${escape(commandLine)}</cmdline>`);
  }
  return [...lines, `  </os>`];
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};

function escape(text: string): string {
  return text.replace(/[&<>'"]/g, (character) => ENTITIES[character] as string);
}
