/**
 * Open vSwitch with DPDK's user-space datapath, started by hand in a folder of its own: an
 * ovsdb-server and an ovs-vswitchd, no system service. Its ports are vhost-user back-ends.
 */
import { execFile, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { findProgram, requireProgram } from '../../src/vmm/programs.ts';
import { endChild, OutputTail, startChild } from '../../src/vmm/child-processes.ts';
import { reserveHugePages } from './hugepages.ts';
import { waitFor } from './scratch.ts';

const run = promisify(execFile);
const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';
/** `ovs-vswitchd` itself may be Debian's build without DPDK, by update-alternatives. */
const DPDK_BUILD = '/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk';

export type OvsOptions = {
  /** Folder for its sockets, database and logs. */
  readonly folder: string;
  /** Names of the ports; each listens on `socketPath(name)`. */
  readonly ports: readonly string[];
  /** Core of the forwarding thread; the daemon's own threads stay there too. */
  readonly workerCore: number;
  readonly memoryMib?: number;
  readonly queues?: number;
  /** A network namespace of its own: its `ovs-netdev` device is there once in each. */
  readonly ownNetwork?: boolean;
  /** More of `other_config`, see ovs-vswitchd.conf.db(5). */
  readonly otherConfig?: Readonly<Record<string, string>>;
};

export class OvsDpdk {
  readonly #folder: string;
  readonly #environment: NodeJS.ProcessEnv;
  readonly #children: ChildProcess[] = [];
  readonly #log = new OutputTail(32_768);

  private constructor(folder: string) {
    this.#folder = folder;
    const folders = { OVS_RUNDIR: folder, OVS_LOGDIR: folder, OVS_DBDIR: folder };
    this.#environment = { ...process.env, ...folders };
  }

  static isInstalled(): boolean {
    return existsSync(DPDK_BUILD) && findProgram('ovsdb-server') !== null;
  }

  static async start(options: OvsOptions): Promise<OvsDpdk> {
    const ovs = new OvsDpdk(options.folder);
    try {
      await ovs.#startDatabase();
      await ovs.#startSwitch(options);
      return ovs;
    } catch (cause) {
      await ovs.close();
      const tail = ovs.#log.text.trimEnd().split('\n').slice(-20).join('\n  | ');
      throw new Error(`Open vSwitch did not start; its log:\n  | ${tail}`, { cause });
    }
  }

  get pids(): number[] {
    return this.#children.map((child) => child.pid ?? -1);
  }

  socketPath(port: string): string {
    return join(this.#folder, port);
  }

  /** `ovs-vsctl` on this instance. */
  async vsctl(...args: string[]): Promise<string> {
    const all = [`--db=unix:${join(this.#folder, 'db.sock')}`, '--timeout=20', ...args];
    const options = { env: this.#environment };
    return (await run(requireProgram('ovs-vsctl'), all, options)).stdout;
  }

  /** `ovs-appctl` on its switch: `dpif-netdev/pmd-perf-show`, `fdb/show br0`. */
  async appctl(...args: string[]): Promise<string> {
    const all = ['-t', join(this.#folder, 'vswitchd.ctl'), ...args];
    return (await run(requireProgram('ovs-appctl'), all, { env: this.#environment })).stdout;
  }

  async close(): Promise<void> {
    for (const child of this.#children.splice(0).toReversed()) await endChild(child);
  }

  async #startDatabase(): Promise<void> {
    const database = join(this.#folder, 'conf.db');
    await run(requireProgram('ovsdb-tool'), ['create', database, SCHEMA]);
    const socket = join(this.#folder, 'db.sock');
    this.#spawn(requireProgram('ovsdb-server'), [
      database,
      `--remote=punix:${socket}`,
      `--unixctl=${join(this.#folder, 'ovsdb.ctl')}`,
    ]);
    await waitFor('ovsdb-server', 5000, () => existsSync(socket));
    await this.vsctl('--no-wait', 'init');
  }

  async #startSwitch(options: OvsOptions): Promise<void> {
    const memoryMib = options.memoryMib ?? 256;
    reserveHugePages(memoryMib);
    const mask = `0x${(1 << options.workerCore).toString(16)}`;
    const settings = {
      'dpdk-init': 'true',
      'dpdk-socket-mem': String(memoryMib),
      'dpdk-lcore-mask': mask,
      'pmd-cpu-mask': mask,
      'dpdk-extra': '"--in-memory --no-pci --no-telemetry"',
      ...options.otherConfig,
    };
    const words = Object.entries(settings).map(([key, value]) => `other_config:${key}=${value}`);
    await this.vsctl('--no-wait', 'set', 'Open_vSwitch', '.', ...words);
    const command = [
      ...(options.ownNetwork === true ? [requireProgram('unshare'), '--net'] : []),
      DPDK_BUILD,
      `unix:${join(this.#folder, 'db.sock')}`,
      `--unixctl=${join(this.#folder, 'vswitchd.ctl')}`,
    ];
    this.#spawn(command[0]!, command.slice(1));
    const bridge = ['--', 'set', 'bridge', 'br0', 'datapath_type=netdev'];
    await this.vsctl('add-br', 'br0', ...bridge);
    for (const port of options.ports) {
      const type = ['--', 'set', 'Interface', port, 'type=dpdkvhostuser'];
      if (options.queues !== undefined) type.push(`options:n_rxq=${options.queues}`);
      await this.vsctl('add-port', 'br0', port, ...type);
      await waitFor(`socket of ${port}`, 5000, () => existsSync(this.socketPath(port)));
    }
  }

  #spawn(program: string, args: string[]): void {
    const child = startChild(program, [...args, '-vconsole:info'], {
      env: this.#environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    this.#children.push(child);
  }
}
