import type { PlaneContext } from '../../runtime/data-plane.ts';
import {
  type AttachedPlane,
  PacketPlane,
  type UplinkPlane,
  XdpPlane,
} from '../../uplinks/index.ts';
import type { AddUplinkPort, AttachUplink } from './net-commands.ts';
import type { PlaneSources, Source } from './plane-sources.ts';
import { UplinkWatch } from './uplink-watch.ts';

type NetUplink = {
  readonly plane: UplinkPlane;
  /** Both null where another worker receives from it. */
  readonly source: Source | null;
  watch: UplinkWatch | null;
};

/** The uplinks of a net plane: interfaces of the host as ports of its switch, by their number. */
export class NetUplinks {
  readonly #context: PlaneContext;
  readonly #sources: PlaneSources;
  readonly #all: (NetUplink | null)[] = [];

  constructor(context: PlaneContext, sources: PlaneSources) {
    this.#context = context;
    this.#sources = sources;
  }

  plane(port: number): UplinkPlane | null {
    return this.#all[port]?.plane ?? null;
  }

  watch(port: number): UplinkWatch | null {
    return this.#all[port]?.watch ?? null;
  }

  /** Polled from now on. @throws SysError the kernel watches no more; `remove` it then. */
  add(port: number, plane: UplinkPlane, source: Source | null): void {
    const uplink: NetUplink = { plane, source, watch: null };
    this.#all[port] = uplink;
    if (source === null) return;
    uplink.watch = new UplinkWatch(this.#context, plane, source.token);
    this.wake(port);
  }

  /** The switch's rules for the port, its counters and addresses stay as they are. */
  attach({ port, queues }: AttachUplink): void {
    (this.plane(port) as AttachedPlane<unknown>).attach(queues);
    this.watch(port)?.begin();
    this.wake(port);
  }

  detach(port: number): void {
    this.watch(port)?.end();
    (this.plane(port) as AttachedPlane<unknown>).detach();
  }

  /** False: there is none of that number. */
  remove(port: number): boolean {
    const uplink = this.#all[port] ?? null;
    if (uplink === null) return false;
    this.#all[port] = null;
    if (uplink.source !== null) this.#sources.remove(uplink.source);
    try {
      uplink.watch?.end();
    } finally {
      uplink.plane.close();
    }
    return true;
  }

  /** What the host queued while the link was down was announced then, and is not again. */
  wake(port: number): void {
    const source = this.#all[port]?.source ?? null;
    if (source !== null) this.#sources.wake(source, performance.now());
  }

  counters(port: number): Readonly<Record<string, number>> {
    const plane = this.plane(port);
    plane?.readKernelCounters();
    return { ...plane?.counters };
  }

  /** With what a predecessor counted. */
  loadCounters(port: number, counters: Readonly<Record<string, number>>): void {
    const own = this.plane(port)?.counters ?? ({} as Record<string, number>);
    for (const name of Object.keys(own) as (keyof typeof own)[]) own[name] = counters[name] ?? 0;
  }
}

export function uplinkPlaneOf(uplink: AddUplinkPort['uplink']): UplinkPlane {
  return uplink.kind === 'packet' ? new PacketPlane(uplink) : new XdpPlane(uplink);
}
