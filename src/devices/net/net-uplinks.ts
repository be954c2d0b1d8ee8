import type { PlaneContext } from '../../runtime/data-plane.ts';
import { SysError } from '../../base/errors.ts';
import {
  type AttachedPlane,
  PacketPlane,
  type UplinkPlane,
  XdpPlane,
} from '../../uplinks/index.ts';
import type { AddUplinkPort, AttachUplink } from './net-commands.ts';
import type { PlaneSources, Source } from './plane-sources.ts';
import { UplinkWatch } from './uplink-watch.ts';

/**
 * How long an uplink is left alone that the kernel would not watch, milliseconds: most that a frame
 * waits then, and a thousand wake-ups of the worker a second.
 */
export const UNWATCHED_REST_MS = 1;

/** One that stays unwatched, or is so again and again, is told of once in so long. */
const TOLD_MS = 60_000;

type NetUplink = {
  readonly plane: UplinkPlane;
  /** Both null where another worker receives from it. */
  readonly source: Source | null;
  watch: UplinkWatch | null;
  /** When it was told last that the kernel would not watch it. */
  toldMs: number;
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
    const uplink: NetUplink = { plane, source, watch: null, toldMs: -TOLD_MS };
    this.#all[port] = uplink;
    if (source === null) return;
    uplink.watch = new UplinkWatch(this.#context, plane, source.token);
    this.wake(port);
  }

  /**
   * It has nothing, and may sleep: its descriptors wake it. False: the kernel watches no more of
   * them (ENOSPC of fs.epoll.max_user_watches, ENOMEM), so whoever calls must wake it.
   */
  rewatch(port: number): boolean {
    const uplink = this.#all[port] ?? null;
    try {
      uplink?.watch?.begin();
      return true;
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      this.#refused(port, uplink as NetUplink, error);
      return false;
    }
  }

  #refused(port: number, uplink: NetUplink, error: SysError): void {
    uplink.plane.counters.watchesRefused++;
    const nowMs = performance.now();
    if (nowMs - uplink.toldMs < TOLD_MS) return;
    uplink.toldMs = nowMs;
    const message =
      `its descriptors are not watched: ${error.message}; it is looked at every ` +
      `${UNWATCHED_REST_MS} ms until they are: raise fs.epoll.max_user_watches, or free memory`;
    this.#context.emit({ kind: 'unwatched', device: port, index: -1, message });
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
