/**
 * The exact QEMU command line of a guest whose network card hangs on a vhost-user port: guest
 * memory in a shared memfd, one socket chardev, one netdev and one virtio-net-pci per card.
 */
import { assert } from '../base/assert.ts';
import { ConfigError } from '../base/errors.ts';
import type { Accelerator } from './programs.ts';

/** One network card of a guest, as the VMM sees it. */
export type GuestNic = {
  /** Unix socket of the port. */
  readonly path: string;
  /** Role of the VMM on the socket: `client` connects (the port listens), `server` listens. */
  readonly mode: 'client' | 'server';
  readonly queuePairs: number;
  /** Offer the packed ring to the guest's driver. */
  readonly packed: boolean;
  readonly mrgRxbuf: boolean;
  /** `52:54:00:...`; null lets the VMM choose. */
  readonly mac: string | null;
  /** Bytes of IP per frame that the card announces; null leaves VIRTIO_NET_F_MTU out. */
  readonly mtu: number | null;
  /** Descriptors of a receive ring, a power of two, 256 .. 1024; null for QEMU's 256. */
  readonly rxQueueSize?: number | null;
  /** Descriptors of a transmit ring, a power of two, 256 .. 1024; null for QEMU's 256. */
  readonly txQueueSize?: number | null;
  /** Behind the machine's IOMMU: the guest maps what the port may touch. Needs `machine.iommu`. */
  readonly iommuPlatform?: boolean;
};

/** Room for memory that is plugged while the guest runs. */
export type MemoryHotplug = {
  /** DIMMs, 1 .. 256 (QEMU's ACPI_MAX_RAM_SLOTS). */
  readonly slots: number;
  /** Memory of the machine with all DIMMs, MiB. */
  readonly maxMib: number;
};

export type GuestKernel = {
  readonly image: string;
  readonly initrd: string | null;
  readonly commandLine: string;
};

export type GuestDisk = { readonly path: string; readonly format: 'raw' | 'qcow2' };

export type GuestMachine = {
  readonly name: string;
  readonly accelerator: Accelerator;
  readonly cpus: number;
  readonly memoryMib: number;
  /** Back guest memory with 2 MiB pages; they must be reserved on the host. */
  readonly hugePages: boolean;
  readonly nics: readonly GuestNic[];
  readonly kernel: GuestKernel | null;
  readonly disk: GuestDisk | null;
  /** An Intel IOMMU; cards with `iommuPlatform` are behind it. */
  readonly iommu?: boolean;
  readonly hotplug?: MemoryHotplug | null;
};

export type QemuOptions = {
  readonly binary?: string;
  /** `mon:stdio` for people (Ctrl-A C is the monitor), `stdio` for programs. */
  readonly serial?: 'mon:stdio' | 'stdio';
  /** Unix socket for QMP, or null. */
  readonly qmpPath?: string | null;
  /** Seconds between attempts of a client chardev whose back-end went away. */
  readonly reconnectSeconds?: number;
  /** Starts an empty machine that a migration fills: QMP `migrate-incoming` says from where. */
  readonly incoming?: boolean;
  readonly extra?: readonly string[];
};

/** @throws ConfigError when the machine cannot be built as asked. */
export function qemuCommand(machine: GuestMachine, options: QemuOptions = {}): string[] {
  checkMachine(machine);
  const kvm = machine.accelerator === 'kvm';
  const argv = [options.binary ?? 'qemu-system-x86_64'];
  argv.push('-name', quoteOption(machine.name));
  // Guest memory must be one shared mapping that the back-end can map too: its fd crosses the
  // socket in SET_MEM_TABLE. Without share=on QEMU starts and every ring stays silent.
  // With an IOMMU KVM must leave the I/O APIC to QEMU.
  const irqchip = machine.iommu && kvm ? ',kernel-irqchip=split' : '';
  argv.push('-machine', `q35,memory-backend=mem${irqchip}`);
  argv.push('-accel', kvm ? 'kvm' : 'tcg,thread=multi');
  argv.push('-cpu', kvm ? 'host' : 'max');
  argv.push('-smp', String(machine.cpus), '-m', memoryOption(machine));
  const huge = machine.hugePages ? ',hugetlb=on,hugetlbsize=2M' : '';
  argv.push('-object', `memory-backend-memfd,id=mem,size=${machine.memoryMib}M,share=on${huge}`);
  argv.push('-nodefaults', '-no-user-config', '-display', 'none');
  argv.push('-serial', options.serial ?? 'mon:stdio');
  const qmp = options.qmpPath ?? null;
  if (qmp !== null) argv.push('-qmp', `unix:${quoteOption(qmp)},server=on,wait=off`);
  // Before the cards: QEMU puts only what comes later behind it. device-iotlb: the guest's
  // invalidations of a card with ats=on reach the back-end.
  if (machine.iommu) argv.push('-device', 'intel-iommu,intremap=off,device-iotlb=on');
  machine.nics.forEach((nic, index) => {
    argv.push(...nicArguments(nic, index, machine.accelerator, options.reconnectSeconds ?? 1));
  });
  if (machine.kernel !== null) argv.push(...kernelArguments(machine.kernel));
  if (machine.disk !== null) {
    const { path, format } = machine.disk;
    argv.push('-drive', `file=${quoteOption(path)},format=${format},if=virtio`);
  }
  if (options.incoming) argv.push('-incoming', 'defer');
  argv.push(...(options.extra ?? []));
  return argv;
}

function memoryOption({ memoryMib, hotplug }: GuestMachine): string {
  if (hotplug == null) return String(memoryMib);
  return `${memoryMib}M,slots=${hotplug.slots},maxmem=${hotplug.maxMib}M`;
}

function nicArguments(
  nic: GuestNic,
  index: number,
  accelerator: Accelerator,
  reconnectSeconds: number,
): string[] {
  const role = nic.mode === 'server' ? ',server=on' : `,reconnect=${reconnectSeconds}`;
  const device = [`virtio-net-pci`, `netdev=net${index}`, `id=nic${index}`];
  if (nic.mac !== null) device.push(`mac=${nic.mac}`);
  if (nic.queuePairs > 1) device.push('mq=on');
  if (nic.packed) device.push('packed=on');
  if (!nic.mrgRxbuf) device.push('mrg_rxbuf=off');
  if (nic.mtu !== null) device.push(`host_mtu=${nic.mtu}`);
  if (nic.rxQueueSize != null) device.push(`rx_queue_size=${nic.rxQueueSize}`);
  if (nic.txQueueSize != null) device.push(`tx_queue_size=${nic.txQueueSize}`);
  // ATS tells the card, and so us, what the guest unmaps. It is a capability of PCI Express: a
  // card on the root bus is none, and QEMU 7.2 then forgets to say what a guest with a lazy IOMMU
  // unmapped ("iotlb invalidate whole domain" in its trace): we would write into pages that are
  // somebody else's by now. A legacy card knows no IOMMU.
  if (nic.iommuPlatform) {
    device.push(`bus=root${index}`, 'disable-legacy=on', 'iommu_platform=on', 'ats=on');
  }
  // Under TCG no MSI-X: QEMU 7.2 dereferences a null vector table in vhost_net_start
  // (irqfd code without KVM) and dies by itself. With KVM: a vector per queue, config, control.
  if (accelerator === 'tcg') device.push('vectors=0');
  else if (nic.queuePairs > 1) device.push(`vectors=${2 * nic.queuePairs + 2}`);
  const root = `pcie-root-port,id=root${index},chassis=${index + 1}`;
  return [
    ...(nic.iommuPlatform ? ['-device', root] : []),
    '-chardev',
    `socket,id=port${index},path=${quoteOption(nic.path)}${role}`,
    '-netdev',
    `vhost-user,id=net${index},chardev=port${index},queues=${nic.queuePairs}`,
    '-device',
    device.join(','),
  ];
}

function kernelArguments(kernel: GuestKernel): string[] {
  const argv = ['-kernel', kernel.image];
  if (kernel.initrd !== null) argv.push('-initrd', kernel.initrd);
  if (kernel.commandLine !== '') argv.push('-append', kernel.commandLine);
  return argv;
}

function checkMachine(machine: GuestMachine): void {
  for (const nic of machine.nics) {
    if (!Number.isInteger(nic.queuePairs) || nic.queuePairs < 1 || nic.queuePairs > 64) {
      throw new ConfigError('queues', `${nic.queuePairs} is not 1 .. 64`);
    }
    if (nic.mac !== null && !/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(nic.mac)) {
      throw new ConfigError('mac', `'${nic.mac}' is not six bytes in hexadecimal`);
    }
    if (nic.mtu !== null && (nic.mtu < 68 || nic.mtu > 65535)) {
      throw new ConfigError('mtu', `${nic.mtu} is not 68 .. 65535`);
    }
    // struct sockaddr_un.sun_path is 108 bytes with its NUL.
    if (Buffer.byteLength(nic.path) > 107) {
      throw new ConfigError('socket', `'${nic.path}' is longer than 107 bytes`);
    }
  }
  const { cpus, memoryMib, hotplug = null } = machine;
  if (!machine.iommu && machine.nics.some((nic) => nic.iommuPlatform)) {
    throw new ConfigError('iommu', 'a card is behind an IOMMU that the machine does not have');
  }
  if (!Number.isInteger(cpus) || cpus < 1) throw new ConfigError('cpus', `${cpus} is not >= 1`);
  if (!Number.isInteger(memoryMib) || memoryMib < 64 || memoryMib > 1 << 24) {
    throw new ConfigError('memory', `${memoryMib} MiB is not 64 .. 16777216`);
  }
  if (hotplug === null) return;
  if (!Number.isInteger(hotplug.slots) || hotplug.slots < 1 || hotplug.slots > 256) {
    throw new ConfigError('slots', `${hotplug.slots} is not 1 .. 256`);
  }
  if (!Number.isInteger(hotplug.maxMib) || hotplug.maxMib <= memoryMib) {
    throw new ConfigError('maxMib', `${hotplug.maxMib} is not more than ${memoryMib} MiB`);
  }
}

/** QEMU splits option values at commas; a comma in a value is written twice. */
export function quoteOption(value: string): string {
  return value.replaceAll(',', ',,');
}

/** One word for a POSIX shell, quoted only when it must be. */
export function shellWord(word: string): string {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/**
 * The command as text that can be pasted into a shell: one option and its value per line,
 * joined by backslashes; on one line with `wrap` false.
 */
export function shellCommand(argv: readonly string[], wrap = true): string {
  assert(argv.length > 0);
  const words = argv.map(shellWord);
  if (!wrap) return words.join(' ');
  const lines: string[] = [words[0] as string];
  for (const [i, word] of words.entries()) {
    if (i === 0) continue;
    const isOption = (argv[i] as string).startsWith('-');
    if (isOption) lines.push(`  ${word}`);
    else lines[lines.length - 1] += ` ${word}`;
  }
  return lines.join(' \\\n');
}

/** A stable, locally administered address from a name, so that a guest keeps it over restarts. */
export function macFromName(name: string): string {
  let hash = 0x811c9dc5; // FNV-1a, 32 bits
  for (const byte of Buffer.from(name)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  const octets = [hash >>> 16, hash >>> 8, hash].map((part) => part & 0xff);
  // 52:54:00 is the prefix that QEMU and libvirt use for guests.
  return ['52', '54', '00', ...octets.map((o) => o.toString(16).padStart(2, '0'))].join(':');
}
