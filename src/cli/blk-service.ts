/**
 * A served disk: an image, the device over it, the worker that does its I/O, and the way that a
 * driver comes to it, a vhost-user socket or the kernel's VDUSE.
 */
import { messageOf, SysError, VringError } from '../base/errors.ts';
import { type DiskShape, DiskUnit, type DiskUnitEvent } from '../daemon/disks/disk-unit.ts';
import { type VduseBind, VduseService } from '../runtime/index.ts';
import type { NbdExportOptions, NbdExportStatus } from '../storage/index.ts';
import { Fd, sendWithFds, setNonblocking } from '../sys/index.ts';
import { BackendListener, BackendSession } from '../vhost-user/index.ts';
import { BlkConfig } from '../wire/virtio-blk.ts';
import type { Readiness, ServiceEvent } from './serve-run.ts';

type VduseAt = {
  readonly vduse: string;
  readonly bind: VduseBind;
  readonly keep: boolean;
  readonly ownBounce: boolean;
};

/** A descriptor that was handed down: a connection, or a socket that listens. */
type FdAt = { readonly fd: number };

export type BlkServiceOptions = DiskShape & {
  readonly at: { readonly socket: string } | FdAt | VduseAt;
  readonly spinMs: number;
  /** NBD, beside the driver. */
  readonly exports: readonly NbdExportOptions[];
  readonly onEvent: (event: ServiceEvent) => void;
};

/**
 * Where a disk over VDUSE records what it has begun. Requests complete in the order of the ring,
 * but a packed ring whose chains take several slots does not say where its device died
 * (virtqueue/recover-packed.ts), and a wrong guess loses the file system.
 */
const STATE_FOLDER = '/run/vring';

/** Descriptors of a queue of VDUSE, whose driver takes what there is. */
const VDUSE_QUEUE_SIZE = 256;

export class BlkService {
  /** Resolves when nothing works any more; `close` it then. */
  readonly failed: Promise<Error>;
  /** Resolves when the connection that was handed down is over; `close` it then. */
  readonly ended: Promise<void>;
  readonly #options: BlkServiceOptions;
  readonly #unit: DiskUnit;
  readonly #end: () => void;
  readonly #fail: (error: Error) => void;
  #listener: BackendListener | null = null;
  #session: BackendSession | null = null;
  #vduse: VduseService | null = null;
  readonly #exports: string[] = [];

  /**
   * Serves when it resolves.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async start(options: BlkServiceOptions): Promise<BlkService> {
    const { at, spinMs } = options;
    // VduseHost translates by itself, and adds the feature.
    const iommu = options.iommu && !('vduse' in at);
    const crashed = Promise.withResolvers<Error>();
    const unit = await DiskUnit.open({
      shape: { ...options, iommu },
      spinMs,
      onEvent: (event) => options.onEvent(saidOf(event)),
      onCrash: crashed.resolve,
    });
    const service = new BlkService(options, unit, crashed);
    try {
      await service.#export();
      if ('socket' in at) service.#listen(at.socket);
      else if ('fd' in at) service.#serveFd(at.fd);
      else await service.#serveVduse(at);
      return service;
    } catch (error) {
      await service.close();
      throw error;
    }
  }

  private constructor(
    options: BlkServiceOptions,
    unit: DiskUnit,
    crashed: PromiseWithResolvers<Error>,
  ) {
    this.#options = options;
    this.#unit = unit;
    this.failed = crashed.promise;
    this.#fail = crashed.resolve;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ended = promise;
    this.#end = resolve;
  }

  /** For the ready line. */
  get readiness(): Readiness & Readonly<Record<string, unknown>> {
    const { at } = this.#options;
    const { presence, resumed } = this.#vduse ?? { presence: null, resumed: false };
    return {
      event: 'ready',
      device: 'blk',
      name: 'vduse' in at ? at.vduse : null,
      socket: 'socket' in at ? at.socket : null,
      driver: presence?.driver ?? null,
      node: presence?.node ?? null,
      interface: null,
      resumed,
      fd: 'fd' in at ? at.fd : null,
      image: this.#unit.description,
      sizeBytes: this.#unit.device.sizeBytes,
      exports: this.#exports,
    };
  }

  async #export(): Promise<void> {
    for (const wanted of this.#options.exports) {
      const status = await this.#unit.image.control('export', wanted);
      this.#exports.push((status as NbdExportStatus).uri);
    }
  }

  #listen(path: string, listener?: Fd): void {
    this.#listener = new BackendListener({
      path,
      target: this.#unit.host,
      ...(listener === undefined ? {} : { listener }),
      onEvent: (event) => {
        const reason = 'reason' in event && event.reason !== null ? event.reason.message : null;
        this.#emit(event.kind, { reason });
      },
    });
  }

  /**
   * A socket that was handed down is a connection, or one that listens: programs of both habits are
   * started. Only the latter has nobody to send nothing to.
   */
  #serveFd(number: number): void {
    const given = new Fd(number, '--fd');
    setNonblocking(number, true);
    try {
      sendWithFds(number, new Uint8Array(0), []);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      if (error.errnoName === 'ENOTCONN') return this.#listen(`fd ${number}`, given);
      if (error.errnoName !== 'EPIPE') {
        given.close();
        throw error;
      }
    }
    this.#session = new BackendSession(given, this.#unit.host);
    this.#emit('connected', { reason: null });
    void this.#session.closed.then((reason) => {
      this.#emit('disconnected', { reason: reason?.message ?? null });
      this.#end();
    });
  }

  async #serveVduse({ vduse: name, bind, ownBounce }: VduseAt): Promise<void> {
    this.#vduse = await VduseService.start({
      name,
      target: this.#unit.host,
      configBytes: BlkConfig.size,
      queueSize: VDUSE_QUEUE_SIZE,
      bind,
      ownBounce,
      stateFolder: STATE_FOLDER,
      onEvent: (event) => {
        if (event.kind === 'gone') this.#fail(event.error);
        else if (event.kind === 'problem') this.#emit('problem', { reason: event.error.message });
        else if (event.kind === 'driver-ok') this.#emit('driver-ok', { resumed: event.resumed });
        else this.#emit(event.kind, {});
      },
    });
  }

  /** The image may have another size by now: then engine, device and driver hear of it. */
  async lookAtSize(): Promise<void> {
    try {
      if (await this.#unit.lookAtSize()) {
        this.#emit('resized', { sizeBytes: this.#unit.device.sizeBytes });
      }
    } catch (error) {
      this.#emit('problem', { reason: messageOf(error) });
    }
  }

  #emit(event: string, rest: Omit<ServiceEvent, 'event'>): void {
    this.#options.onEvent({ event, ...rest });
  }

  /** Requests under way are finished first. Returns the device's counters. */
  async close(): Promise<Record<string, number>> {
    const { at } = this.#options;
    // The path of a socket that was handed down is its maker's.
    if ('fd' in at) await this.#listener?.surrender();
    else await this.#listener?.close();
    await this.#session?.close();
    await this.#vduse?.close({ keep: 'keep' in at && at.keep });
    let counters: Record<string, number> = {};
    try {
      const status = await this.#unit.status();
      counters = { errors: status.errors, faults: status.faults, ...status.totals };
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    await this.#unit.close();
    return counters;
  }
}

function saidOf({ kind: event, ...rest }: DiskUnitEvent): ServiceEvent {
  if (!('code' in rest)) return { event, ...rest };
  const { queue, fault } = rest;
  return { event, queue, fault };
}
