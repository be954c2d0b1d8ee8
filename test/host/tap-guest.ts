/** A software guest on vhost-net inside the test host, and what the kernel sees of its TAP. */
import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { createSocket, type Socket } from 'node:dgram';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import {
  GuestIommu,
  NetGuest,
  NetStack,
  parsePrefix,
  type IommuMode,
  type NetGuestOptions,
} from '../../src/guest/index.ts';
import { VhostNetBackend, type VhostNetOptions } from '../../src/vhost-kernel/index.ts';
import { type Scratch, waitFor } from '../peers/scratch.ts';

const run = promisify(execFile);

/** `ip`, in the machine's own namespace. */
export async function ip(...args: string[]): Promise<string> {
  return (await run('ip', args)).stdout;
}

export function loadModules(...modules: string[]): void {
  execFileSync('modprobe', ['-a', ...modules]);
}

export type TapGuestOptions = {
  readonly tap: string;
  /** 10.77.N.1 is the host's address, 10.77.N.2 the guest's; null: none. */
  readonly net?: number | null;
  /** The guest's, where it is another. */
  readonly address?: string;
  readonly backend?: Partial<VhostNetOptions>;
  readonly guest?: NetGuestOptions;
  readonly iommu?: IommuMode;
};

export class TapGuest {
  readonly backend: VhostNetBackend;
  readonly guest: NetGuest;
  readonly stack: NetStack;
  readonly iommu: GuestIommu | null;

  static async start(options: TapGuestOptions): Promise<TapGuest> {
    const { tap, net = 0 } = options;
    const iommu = options.iommu === undefined ? null : new GuestIommu(options.iommu);
    const pairs = options.guest?.queuePairs ?? 1;
    const backend = VhostNetBackend.open({
      tap,
      queuePairs: pairs,
      ...(iommu === null ? {} : { onMiss: (iova, write) => iommu.missed(iova, write) }),
      ...options.backend,
    });
    iommu?.setPeer(backend.iotlb);
    try {
      // Neighbour discovery of the host would be frames that no test counts on.
      await run('sysctl', ['-qw', `net.ipv6.conf.${backend.interfaceName}.disable_ipv6=1`]);
      const address = net === null ? [] : [`10.77.${net}.1/24`];
      for (const each of address) await ip('address', 'add', each, 'dev', backend.interfaceName);
      const link = iommu === null ? {} : { addressSpace: iommu };
      const guest = await NetGuest.start(backend, options.guest ?? {}, link);
      return new TapGuest(backend, guest, iommu, options.address ?? `10.77.${net ?? 0}.2/24`);
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  private constructor(
    backend: VhostNetBackend,
    guest: NetGuest,
    iommu: GuestIommu | null,
    address: string,
  ) {
    this.backend = backend;
    this.guest = guest;
    this.iommu = iommu;
    this.stack = new NetStack({ link: guest, ip: parsePrefix(address, 4, 'ip') });
  }

  /** Sends every datagram to `port` back where it came from. */
  echo(port: number): void {
    this.stack.udp.bind(port, (payload, from, fromPort, toPort) => {
      this.stack.udp.send(from, fromPort, toPort, payload);
    });
  }

  async close(): Promise<void> {
    this.stack.close();
    await this.guest.close();
  }
}

/** The kernel's threads of vhost devices that this process opened. */
export function vhostThreads(): string[] {
  const names: string[] = [];
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const name = readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
      if (name === `vhost-${process.pid}`) names.push(`${name} (${pid})`);
    } catch {
      // It ended meanwhile.
    }
  }
  return names;
}

/** A UDP socket of the host's kernel. */
export class HostSocket {
  readonly #socket: Socket = createSocket('udp4');
  readonly received: Buffer[] = [];

  constructor() {
    this.#socket.on('message', (message) => this.received.push(message));
  }

  send(payload: Uint8Array, port: number, address: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#socket.send(payload, port, address, (error) =>
        error === null ? resolve() : reject(error),
      );
    });
  }

  close(): void {
    this.#socket.close();
  }

  /**
   * Sends `payloads` one by one, each again until its echo is there; resolves with how many were
   * sent again.
   */
  async echoes(payloads: readonly Buffer[], port: number, address: string): Promise<number> {
    let repeated = 0;
    this.received.length = 0;
    for (const payload of payloads) {
      for (let attempt = 0; ; attempt++) {
        if (attempt > 0) repeated++;
        if (attempt > 3) throw new Error(`no echo from ${address}:${port}`);
        await this.send(payload, port, address);
        const seen = () => this.received.some((each) => each.equals(payload));
        // So long that late is not taken for lost: emulated machines stand still for seconds.
        const echoed = await waitFor('echo', 8000, seen).catch(() => false);
        if (echoed) break;
      }
    }
    return repeated;
  }
}

export type CapturedFrame = { readonly bytes: Buffer; readonly lenBytes: number };

/** tcpdump on an interface, its file read back frame by frame. */
export class Capture {
  readonly #file: string;
  readonly #child: ChildProcess;

  static async start(scratch: Scratch, name: string, filter: string): Promise<Capture> {
    const file = scratch.path(`${name}.pcap`);
    const args = ['-i', name, '-n', '-U', '--immediate-mode', '-s', '0', '-w', file];
    // tcpdump drops to a user who may not write here.
    const child = spawn('tcpdump', [...args, '-Z', 'root', filter], { stdio: 'ignore' });
    await waitFor(
      'the file of tcpdump',
      10_000,
      () => existsSync(file) && readFileSync(file).length >= 24,
    );
    return scratch.own(new Capture(file, child));
  }

  private constructor(file: string, child: ChildProcess) {
    this.#file = file;
    this.#child = child;
  }

  frames(): CapturedFrame[] {
    const all = readFileSync(this.#file);
    const frames: CapturedFrame[] = [];
    for (let at = 24; at + 16 <= all.length;) {
      const captured = all.readUInt32LE(at + 8);
      if (at + 16 + captured > all.length) break; // not written to its end yet
      const lenBytes = all.readUInt32LE(at + 12);
      frames.push({ bytes: all.subarray(at + 16, at + 16 + captured), lenBytes });
      at += 16 + captured;
    }
    return frames;
  }

  async close(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGINT');
    await ended;
  }
}

/** Bytes that differ from one another, and from one call to the next. */
export function payloads(count: number, sizes: readonly number[]): Buffer[] {
  return Array.from({ length: count }, (_, n) => {
    const bytes = Buffer.alloc(sizes[n % sizes.length]);
    for (let i = 0; i < bytes.length; i++) bytes[i] = (n * 31 + i * 7) & 0xff;
    bytes.writeUInt32BE(n, 0);
    return bytes;
  });
}
