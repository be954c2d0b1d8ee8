/**
 * The inflight region of a VDUSE device, in a file: what a process that dies had taken and not yet
 * used, for the one that goes on. The layout is that of vhost-user (specification, "Inflight I/O
 * tracking"), and the queues keep it; here it is only found, mapped and emptied.
 *
 * For devices that finish requests out of order. Those that keep the order need none: there the
 * ring itself says where it stands.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { VringError } from '../base/errors.ts';
import { mapSharedArea, type SharedRegion } from '../memory/index.ts';
import { arena, fdStat, openFd, truncate } from '../sys/index.ts';
import type { InflightArea } from '../vhost-user/index.ts';
import { INFLIGHT_VERSION_AT, inflightQueueBytes } from '../wire/inflight.ts';
import { O_CREAT, O_RDWR } from '../wire/linux.ts';

export type InflightShape = { readonly queueCount: number; readonly queueSizeMax: number };

export class VduseInflight {
  readonly path: string;
  readonly #region: SharedRegion;
  readonly #shape: InflightShape;

  /**
   * Opens or makes the file. One of another shape is none: it is of another device.
   * @throws VringError ERR_VRING_VDUSE_INFLIGHT: no file of tmpfs; SysError EACCES...
   */
  static open(path: string, shape: InflightShape): VduseInflight {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    const sizeBytes = shape.queueCount * strideBytes(shape);
    const fd = openFd(path, O_RDWR | O_CREAT);
    try {
      const stat = fdStat(fd.number);
      if (stat.kind !== 'memfd-like') {
        // The data plane writes there for every request, and must not wait for a disk.
        const text = `${path} is not on a tmpfs; name a folder that is, such as /run or /dev/shm`;
        throw new VringError('ERR_VRING_VDUSE_INFLIGHT', text);
      }
      if (stat.sizeBytes !== sizeBytes) {
        truncate(fd.number, 0);
        truncate(fd.number, sizeBytes);
      }
      const region = mapSharedArea(fd.number, BigInt(sizeBytes), 0n, `inflight file ${path}`);
      return new VduseInflight(path, region, shape);
    } finally {
      fd.close();
    }
  }

  /** Use `open`. */
  constructor(path: string, region: SharedRegion, shape: InflightShape) {
    this.path = path;
    this.#region = region;
    this.#shape = shape;
  }

  of(index: number): InflightArea {
    const sizeBytes = strideBytes(this.#shape);
    const { offset, handle } = this.#region;
    return { offset: offset + index * sizeBytes, sizeBytes, handle };
  }

  /** Has a queue ever kept its record there? */
  knows(index: number): boolean {
    return arena().view.getUint16(this.of(index).offset + INFLIGHT_VERSION_AT, true) !== 0;
  }

  /** The driver starts over: nothing is out. No ring runs. */
  clear(): void {
    const { offset, sizeBytes } = this.#region;
    arena().bytes.fill(0, offset, offset + sizeBytes);
  }

  /** There will be no successor. */
  static remove(path: string): void {
    rmSync(path, { force: true });
  }

  /** Idempotent. The file stays. */
  close(): void {
    this.#region.close();
  }
}

/** Packed is the larger of the two; which one it will be is the driver's choice. */
function strideBytes({ queueSizeMax }: InflightShape): number {
  return inflightQueueBytes(queueSizeMax, true);
}
