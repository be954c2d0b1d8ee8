/** Memory that a message brings besides the guest's: the dirty log, an inflight region. */
import { ProtocolError, VringError } from '../base/errors.ts';
import { mapSharedArea, MemoryError, type SharedRegion } from '../memory/index.ts';
import type { Fd, RegionHandle } from '../sys/index.ts';

/** Owns its fd, which a successor of this process needs, and its mapping. */
export class SharedArea {
  readonly fd: Fd;
  readonly fdOffset: number;
  readonly sizeBytes: number;
  readonly #region: SharedRegion;

  /**
   * Takes the fd over when it returns.
   * @throws ProtocolError with the code of the memory's own check, field `<name>.<field>`.
   */
  static map(request: string, name: string, fd: Fd, bytes: bigint, fdOffset: bigint): SharedArea {
    try {
      return new SharedArea(fd, mapSharedArea(fd.number, bytes, fdOffset, name));
    } catch (cause) {
      if (!(cause instanceof VringError)) throw cause;
      const field = cause instanceof MemoryError ? `${name}.${cause.field}` : name;
      throw new ProtocolError(cause.code, request, field, cause.message, { cause });
    }
  }

  /** Use `map`. */
  constructor(fd: Fd, region: SharedRegion) {
    this.fd = fd;
    this.fdOffset = region.fdOffset;
    this.sizeBytes = region.sizeBytes;
    this.#region = region;
  }

  get offset(): number {
    return this.#region.offset;
  }

  get handle(): RegionHandle {
    return this.#region.handle;
  }

  /** For who fails after all: the fd stays the caller's. */
  unmap(): void {
    this.#region.close();
  }

  /** Idempotent. */
  close(): void {
    this.#region.close();
    this.fd.close();
  }
}
