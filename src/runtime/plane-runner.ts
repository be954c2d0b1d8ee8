import type { IotlbUpdate } from '../vhost-user/index.ts';
import type { VringAttach } from './data-plane.ts';

/**
 * Whoever runs a `DataPlane`: a worker thread (`DataPlaneWorker`), or the calling thread itself.
 * Requests are carried out in the order in which they were made.
 */
export interface PlaneRunner {
  attachVring(vring: VringAttach): Promise<void>;
  /** Resolves to the ring's base once its requests are done and nothing touches it any more. */
  detachVring(device: number, index: number): Promise<number>;
  enableVring(device: number, index: number, enabled: boolean): Promise<void>;
  /** After it resolves the previous descriptor is no longer written. */
  setCallFd(device: number, index: number, callFd: number): Promise<void>;
  /** After it resolves the previous descriptor is no longer written. */
  setErrFd(device: number, index: number, errFd: number): Promise<void>;
  /** The session of the device is over: what its driver had set is forgotten. */
  resetDevice(device: number): Promise<void>;
  /** When it resolves the rings of the device use the new translation. */
  updateIotlb(device: number, entry: IotlbUpdate): Promise<void>;
  /** When it resolves nobody uses a translation of the range. */
  invalidateIotlb(device: number, iova: number, sizeBytes: number): Promise<void>;
  /** Asks the plane: `DataPlane.command`. */
  request<T>(op: string, payload: unknown): Promise<T>;
  /** Idempotent; resolves when the plane does not run any more. */
  close(): Promise<void>;
}
