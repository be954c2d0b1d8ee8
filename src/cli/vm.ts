/**
 * `vring vm`: how a virtual machine attaches to a port. Prints the exact QEMU command line, or
 * libvirt's or Cloud Hypervisor's form of it, and with `--run` starts QEMU in the foreground.
 */
import { spawn } from 'node:child_process';
import { extname, resolve } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { PortStatus } from '../daemon/switch-types.ts';
import {
  cloudHypervisorCommand,
  detectAccelerator,
  libvirtDomain,
  linuxGuestKernel,
  macFromName,
  qemuCommand,
  requireProgram,
  shellCommand,
  type Accelerator,
  type GuestDisk,
  type GuestKernel,
  type GuestMachine,
  type GuestNic,
  type QemuOptions,
} from '../vmm/index.ts';
import { ApiClient } from './client.ts';
import { complain, print, printJson, UsageError } from './output.ts';

export type VmOptions = {
  readonly socket?: string;
  readonly server?: boolean;
  readonly control?: string;
  readonly name?: string;
  readonly memory: number;
  readonly cpus?: number;
  readonly queues: number;
  readonly packed?: boolean;
  readonly mrgRxbuf: boolean;
  readonly mac?: string;
  readonly mtu?: number;
  readonly hugepages?: boolean;
  readonly iommu?: boolean;
  readonly reconnect: number;
  readonly accel: 'auto' | Accelerator;
  readonly kernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly disk?: string;
  readonly demoGuest?: boolean;
  readonly ip?: string;
  readonly gateway?: string;
  readonly libvirt?: boolean;
  readonly cloudHypervisor?: boolean;
  readonly run?: boolean;
  readonly json?: boolean;
};

const EXAMPLES = `
Examples:
  vring vm vm0 --disk debian.qcow2           # the QEMU command for port vm0 of the running switch
  vring vm vm0 --disk debian.qcow2 --run     # start it here; its exit status is ours
  vring vm vm0 --libvirt --disk /srv/a.qcow2 > vm0.xml && virsh create vm0.xml
  vring vm --socket /run/vring/vm1.sock --queues 2 --packed
  vring vm vm0 --iommu --disk debian.qcow2   # behind an Intel IOMMU; the port says iommu=on
  vring vm vm0 --run --demo-guest --ip 10.0.0.2/24   # a small Linux of Debian's kernel and busybox

Memory is always shared (memory-backend-memfd,share=on): the switch maps it.
Without KVM QEMU interprets the guest (TCG), and its card gets no MSI-X: QEMU 7.2 crashes with it.`;

/** The command, for `vring` to add. */
export function vmCommand(): Command {
  return new Command('vm')
    .summary('QEMU command line and libvirt XML for a port, or start QEMU on it')
    .description('How a virtual machine attaches to a port; --run starts QEMU on it.')
    .argument('[port]', 'port of the running switch; it says the socket and who listens')
    .option('--socket <path>', 'the socket itself, without asking a switch')
    .option('--server', 'with --socket: the VMM listens and the switch connects')
    .option('--control <path>', 'socket of the switch (env VRING_CONTROL)')
    .option('--name <name>', 'of the guest; by default the port')
    .option('-m, --memory <MiB>', 'of the guest', wholeNumber, 512)
    .option('--cpus <n>', 'of the guest; by default one per queue pair', wholeNumber)
    .option('--queues <n>', 'queue pairs, at most as many as the port has', wholeNumber, 1)
    .option('--packed', 'offer the packed ring')
    .option('--no-mrg-rxbuf', 'do not offer mergeable receive buffers')
    .option('--mac <address>', 'of the card; by default made from the name')
    .option('--mtu <bytes>', 'announced to the guest', wholeNumber)
    .option('--iommu', 'an Intel IOMMU with the card behind it; the port needs iommu=on')
    .option('--reconnect <seconds>', 'QEMU looks so often for a port that went', wholeNumber, 1)
    .option('--hugepages', 'guest memory in 2 MiB pages, which must be reserved')
    .addOption(
      new Option('--accel <kind>', 'auto: KVM where it works')
        .choices(['auto', 'kvm', 'tcg'])
        .default('auto'),
    )
    .option('--kernel <file>', 'boot this kernel')
    .option('--initrd <file>', 'with this initial file system')
    .option('--append <words>', 'and this command line')
    .option('--disk <file>', 'a disk, qcow2 or raw by its name')
    .option('--demo-guest', "boot a small Linux made of this machine's kernel and busybox")
    .option('--ip <address/prefix>', 'of the demo guest; more than one with commas')
    .option('--gateway <address>', 'default route of the demo guest')
    .option('--libvirt', "print libvirt's XML")
    .option('--cloud-hypervisor', "print Cloud Hypervisor's command line")
    .option('--run', 'start QEMU in the foreground')
    .option('--json', 'all of it as JSON')
    .addHelpText('after', EXAMPLES)
    .action(async (port: string | undefined, options: VmOptions) => {
      process.exitCode = await runVm(port, options);
    });
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.');
  return Number(text);
}

/** Returns the exit status: QEMU's with `--run`, else 0. */
export async function runVm(port: string | undefined, options: VmOptions): Promise<number> {
  checkOptions(port, options);
  const endpoint = await findEndpoint(port, options);
  const machine = buildMachine(port, endpoint, options);
  if (options.json) printJson(describe(machine, options));
  else if (options.libvirt) process.stdout.write(libvirtDomain(machine));
  else if (options.cloudHypervisor) print(shellCommand(cloudHypervisorCommand(machine)));
  else if (!options.run) print(shellCommand(qemuCommand(machine, qemuOptions(options))));
  if (options.run) return runQemu(machine, options);
  if (machine.kernel === null && machine.disk === null) {
    complain('this guest has nothing to boot from; add --disk, --kernel or --demo-guest');
  }
  return 0;
}

function checkOptions(port: string | undefined, options: VmOptions): void {
  if ((port === undefined) === (options.socket === undefined)) {
    throw new UsageError('give either a port of the running switch, or --socket PATH');
  }
  if (options.server && options.socket === undefined) {
    throw new UsageError('--server belongs to --socket; a port of the switch knows who listens');
  }
  const forms = [options.libvirt, options.cloudHypervisor, options.run].filter(Boolean);
  if (forms.length > 1) throw new UsageError('choose one of --libvirt, --cloud-hypervisor, --run');
  if (options.json && options.run) throw new UsageError('--json prints; --run starts; choose one');
  if (options.demoGuest && options.kernel !== undefined) {
    throw new UsageError('--demo-guest brings its own kernel; leave --kernel out');
  }
  for (const name of ['ip', 'gateway'] as const) {
    if (options[name] !== undefined && !options.demoGuest) {
      throw new UsageError(`--${name} is for --demo-guest; another system sets its own address`);
    }
  }
  for (const name of ['initrd', 'append'] as const) {
    if (options[name] !== undefined && options.kernel === undefined) {
      throw new UsageError(`--${name} belongs to --kernel`);
    }
  }
}

type Endpoint = {
  readonly path: string;
  readonly mode: GuestNic['mode'];
  readonly mtu: number | null;
};

/** Where the card is plugged in, and whether the VMM listens there. */
async function findEndpoint(port: string | undefined, options: VmOptions): Promise<Endpoint> {
  if (port === undefined) {
    const mode = options.server ? 'server' : 'client';
    return { path: resolve(options.socket as string), mode, mtu: null };
  }
  const client = new ApiClient(options.control);
  const status = await client.json<PortStatus>(`/v1/ports/${encodeURIComponent(port)}`);
  if (status.kind !== 'vhost-user') {
    throw new UsageError(`port ${port} is a ${status.kind} port; a VM needs a vhost-user port`);
  }
  if (status.state === 'up') complain(`port ${port} is in use: a guest is attached to it`);
  // The port connects, so the VMM listens.
  const isClient = status.endpoint.endsWith(',client');
  const path = isClient ? status.endpoint.slice(0, -',client'.length) : status.endpoint;
  return { path, mode: isClient ? 'server' : 'client', mtu: null };
}

function buildMachine(
  port: string | undefined,
  endpoint: Endpoint,
  options: VmOptions,
): GuestMachine {
  const name = options.name ?? port ?? 'vm0';
  const accelerator = options.accel === 'auto' ? acceleratorFor(options) : options.accel;
  const nic: GuestNic = {
    path: endpoint.path,
    mode: endpoint.mode,
    queuePairs: options.queues,
    packed: options.packed ?? false,
    mrgRxbuf: options.mrgRxbuf,
    mac: options.mac ?? macFromName(name),
    mtu: options.mtu ?? endpoint.mtu,
    iommuPlatform: options.iommu ?? false,
  };
  return {
    name,
    accelerator,
    cpus: options.cpus ?? options.queues,
    memoryMib: options.memory,
    hugePages: options.hugepages ?? false,
    nics: [nic],
    kernel: kernelOf(name, options),
    disk: diskOf(options.disk),
    iommu: options.iommu ?? false,
  };
}

/** A text for another machine is written for KVM; what runs here takes what works here. */
function acceleratorFor(options: VmOptions): Accelerator {
  return options.cloudHypervisor ? 'kvm' : detectAccelerator();
}

function kernelOf(hostName: string, options: VmOptions): GuestKernel | null {
  if (options.demoGuest) {
    const { ip = null, gateway = null, mtu = null } = options;
    const kernelWords = options.iommu ? ['intel_iommu=on'] : [];
    return linuxGuestKernel({ ip, gateway, mtu, hostName, shell: 'interactive', kernelWords });
  }
  if (options.kernel === undefined) return null;
  const initrd = options.initrd === undefined ? null : resolve(options.initrd);
  return { image: resolve(options.kernel), initrd, commandLine: options.append ?? 'console=ttyS0' };
}

function diskOf(path: string | undefined): GuestDisk | null {
  if (path === undefined) return null;
  const format = ['.qcow2', '.qcow'].includes(extname(path)) ? 'qcow2' : 'raw';
  return { path: resolve(path), format };
}

function qemuOptions(options: VmOptions): QemuOptions {
  return { reconnectSeconds: options.reconnect };
}

function describe(machine: GuestMachine, options: VmOptions): object {
  const argv = qemuCommand(machine, qemuOptions(options));
  const kvm = machine.accelerator === 'kvm' && !machine.iommu;
  return {
    machine,
    qemu: { argv, command: shellCommand(argv, false) },
    libvirt: libvirtDomain(machine),
    cloudHypervisor: kvm ? { argv: cloudHypervisorCommand(machine) } : null,
  };
}

/** Signals that end us end QEMU; a terminal sends SIGINT to both, and QEMU decides. */
async function runQemu(machine: GuestMachine, options: VmOptions): Promise<number> {
  if (machine.kernel === null && machine.disk === null) {
    throw new UsageError('nothing to boot from; add --disk, --kernel or --demo-guest');
  }
  const binary = requireProgram('qemu-system-x86_64');
  const argv = qemuCommand(machine, { ...qemuOptions(options), binary });
  const child = spawn(argv[0] as string, argv.slice(1), { stdio: 'inherit' });
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  const ignore = (): void => {};
  process.on('SIGTERM', forward).on('SIGHUP', forward).on('SIGINT', ignore);
  try {
    return await new Promise<number>((done, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) => done(signal === null ? (code ?? 1) : SIGNALLED));
    });
  } finally {
    process.off('SIGTERM', forward).off('SIGHUP', forward).off('SIGINT', ignore);
  }
}

/** QEMU was killed; as a shell would say for SIGKILL. */
const SIGNALLED = 137;
