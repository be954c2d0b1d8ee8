/**
 * A switch without a data plane: what the API, the CLI and their tests run against. Ports and
 * counters are invented but obey the contract of SwitchControl.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { FakeDisks } from './fake-disks.ts';
import {
  portExists,
  portNotFound,
  type Capture,
  type PortUpdate,
  type SwitchControl,
} from './switch-control.ts';
import type {
  MacEntry,
  PortConfig,
  PortStatus,
  SwitchConfig,
  SwitchEvent,
  WorkerStatus,
} from './switch-types.ts';

type FakePort = { config: PortConfig; linkUp: boolean; since: number };

export class FakeSwitch extends EventEmitter implements SwitchControl {
  disks = new FakeDisks();
  readonly #ports = new Map<string, FakePort>();
  readonly #events: SwitchEvent[] = [];
  #macs: MacEntry[] = [
    { mac: '52:54:00:12:34:56', vlan: 10, port: 'vm0', ageSeconds: 3 },
    { mac: '52:54:00:12:34:57', vlan: 1, port: 'up', ageSeconds: 120 },
  ];
  /** For tests: captures that are open, and whether it was closed. */
  openCaptures = 0;
  closed = false;
  /** Counters grow with time, unless a test wants the same every time. */
  frozen = false;

  static async start(config: Pick<SwitchConfig, 'ports' | 'disks' | 'scsi'>): Promise<FakeSwitch> {
    const fake = new FakeSwitch();
    fake.disks = new FakeDisks(config.disks, config.scsi);
    for (const port of config.ports) await fake.addPort(port);
    return fake;
  }

  emitEvent(kind: string, port: string | null, message: string): void {
    const event = { at: new Date().toISOString(), kind, port, message };
    this.#events.push(event);
    if (this.#events.length > 1000) this.#events.shift();
    this.emit('event', event);
  }

  async addPort(config: PortConfig): Promise<PortStatus> {
    if (this.#ports.has(config.name)) throw portExists(`the name "${config.name}"`, config.name);
    this.#ports.set(config.name, { config, linkUp: true, since: Date.now() });
    this.emitEvent('port-added', config.name, `${config.kind} ${endpointOf(config)}`);
    return this.port(config.name);
  }

  async removePort(name: string): Promise<void> {
    if (!this.#ports.delete(name)) throw portNotFound(name);
    this.emitEvent('port-removed', name, 'removed');
  }

  async updatePort(name: string, update: PortUpdate): Promise<PortStatus> {
    const port = this.#get(name);
    if (update.linkUp !== undefined) port.linkUp = update.linkUp;
    if (update.vlan !== undefined) port.config = { ...port.config, vlan: update.vlan };
    if (update.mtu !== undefined) port.config = { ...port.config, mtu: update.mtu };
    this.emitEvent('port-changed', name, JSON.stringify(update));
    return this.port(name);
  }

  async ports(): Promise<PortStatus[]> {
    return Array.from(this.#ports.values(), (port) => this.#status(port));
  }

  async port(name: string): Promise<PortStatus> {
    return this.#status(this.#get(name));
  }

  async macTable(): Promise<MacEntry[]> {
    return this.#macs;
  }

  async flushMacTable(port?: string): Promise<number> {
    if (port !== undefined) this.#get(port);
    const before = this.#macs.length;
    this.#macs = this.#macs.filter((entry) => port !== undefined && entry.port !== port);
    return before - this.#macs.length;
  }

  async workers(): Promise<WorkerStatus[]> {
    const moves = { core: null, queuesTaken: 3, queuesRefused: 1 };
    return [{ id: 0, polls: 1000, sleeps: 10, wakeups: 9, cpuSeconds: 0.25, ...moves, queues: [] }];
  }

  async capture(name: string, options: { snapLen: number }): Promise<Capture> {
    this.#get(name);
    this.openCaptures++;
    const state = { open: true };
    const close = () => {
      if (state.open) this.openCaptures--;
      state.open = false;
    };
    async function* blocks(): AsyncGenerator<Uint8Array> {
      yield sectionHeader();
      for (let i = 0; state.open; i++) {
        yield packetBlock(new Uint8Array(60).fill(i & 0xff), options.snapLen);
        await sleep(1);
      }
    }
    return { [Symbol.asyncIterator]: blocks, close, lost: 0 };
  }

  events(): SwitchEvent[] {
    return [...this.#events];
  }

  async close(): Promise<void> {
    this.closed = true;
  }

  #get(name: string): FakePort {
    const port = this.#ports.get(name);
    if (!port) throw portNotFound(name);
    return port;
  }

  #status({ config, linkUp, since }: FakePort): PortStatus {
    const isGuest = config.kind === 'vhost-user';
    const ticks = this.frozen ? 1000 : Date.now() - since;
    const queue = { size: 256, enabled: true, started: true, fault: null };
    const counters = { kicks: 7, calls: 5, callsSuppressed: 2, chains: 64 };
    return {
      name: config.name,
      kind: config.kind,
      endpoint: endpointOf(config),
      state: linkUp ? 'up' : 'down',
      reason: linkUp
        ? null
        : { code: 'LINK_DOWN', message: 'link set down', at: '2026-01-01T00:00:00.000Z' },
      linkUp,
      sessions: isGuest ? 1 : 0,
      vlan: config.vlan,
      mtu: config.mtu,
      policy: config.policy ?? 'balanced',
      features: isGuest ? { bits: '0x130008000', names: ['VIRTIO_NET_F_MRG_RXBUF'] } : null,
      protocolFeatures: null,
      memory: isGuest ? { regions: 1, bytes: 268435456 } : null,
      session: isGuest
        ? {
            messages: 40,
            refusals: 0,
            log: { bytes: 8192, active: false },
            iotlb: { entries: 12, misses: 15, updates: 15, invalidations: 3 },
            channel: { requests: 15 },
            postcopy: 'none',
          }
        : null,
      queues: isGuest
        ? ['receiveq1', 'transmitq1'].map((name, index) => ({ index, name, ...queue, counters }))
        : [],
      counters: {
        rxFrames: ticks * 1000,
        rxBytes: ticks * 64000,
        txFrames: ticks * 500,
        txBytes: ticks * 32000,
        rxDropVlan: 3,
        txDropNoBuffer: ticks,
        faults: 0,
        learned: 2,
      },
    };
  }
}

function endpointOf(config: PortConfig): string {
  if ('interface' in config) return config.interface;
  if (config.kind === 'vduse') return config.device;
  return config.mode === 'client' ? `${config.path},client` : config.path;
}

/** pcapng: a section header and one Ethernet interface. */
function sectionHeader(): Uint8Array {
  const bytes = new Uint8Array(28 + 20);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x0a0d0d0a, true);
  view.setUint32(4, 28, true);
  view.setUint32(8, 0x1a2b3c4d, true);
  view.setUint16(12, 1, true);
  view.setBigInt64(16, -1n, true);
  view.setUint32(24, 28, true);
  view.setUint32(28, 1, true);
  view.setUint32(32, 20, true);
  view.setUint16(36, 1, true);
  view.setUint32(44, 20, true);
  return bytes;
}

/** An enhanced packet block. */
function packetBlock(frame: Uint8Array, snapLen: number): Uint8Array {
  const kept = Math.min(frame.length, snapLen);
  const total = 32 + ((kept + 3) & ~3);
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 6, true);
  view.setUint32(4, total, true);
  view.setUint32(20, kept, true);
  view.setUint32(24, frame.length, true);
  bytes.set(frame.subarray(0, kept), 28);
  view.setUint32(total - 4, total, true);
  return bytes;
}
