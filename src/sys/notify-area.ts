/**
 * Doorbells: a page of a device that a driver writes to, so that no eventfd and no kernel thread
 * stands between a kick and the device.
 */
import { errnoName, sysError } from './errors.ts';
import { native } from './native.ts';

/** Why a device has no such page: none at all, or one that it shares with other registers. */
const NONE = new Set(['EOPNOTSUPP', 'ENOTSUP', 'EINVAL', 'ENODEV', 'errno 524']);

/** One doorbell, mapped write-only. */
export class NotifyArea {
  #doorbell: object | null;

  /**
   * Of page `page` of an open device: for vhost-vDPA, the number of the vring. Null: the device has
   * no doorbell that can be mapped, and an eventfd must do.
   * @throws SysError ENOMEM, EBADF.
   * @syscalls mmap
   */
  static map(fd: number, page: number): NotifyArea | null {
    const result = native.notifyMap(fd, page);
    if (typeof result !== 'number') return new NotifyArea(result);
    if (NONE.has(errnoName(-result))) return null;
    throw sysError('mmap', result, `doorbell ${page} of fd ${fd}`);
  }

  /** Use `map`. */
  constructor(doorbell: object) {
    this.#doorbell = doorbell;
  }

  /** What a driver says without VIRTIO_F_NOTIFICATION_DATA: which ring has something. */
  ring(index: number): void {
    if (this.#doorbell !== null) native.notifyRing(this.#doorbell, index, 2);
  }

  /**
   * With VIRTIO_F_NOTIFICATION_DATA (virtio 1.2, 4.1.5.2): the ring in bits 0-15, the next avail
   * index in bits 16-31 (packed: offset in 16-30, wrap counter in 31).
   */
  ringWith(data: number): void {
    if (this.#doorbell !== null) native.notifyRing(this.#doorbell, data >>> 0, 4);
  }

  /**
   * Idempotent. While it is mapped the device's node counts as open.
   * @syscalls munmap
   */
  close(): void {
    if (this.#doorbell !== null) native.notifyUnmap(this.#doorbell);
    this.#doorbell = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
