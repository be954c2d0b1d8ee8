import type { IoBatch, IoDone } from './io-batch.ts';

/**
 * Bytes on something: what a block device reads from and writes to. Requests go in by the batch
 * and come back by the batch, in any order, each once; whether they are carried out within
 * `submit` or by the kernel meanwhile is the engine's affair. Nothing here throws: a request that
 * fails has a status.
 *
 * An engine belongs to one thread. What it is opened from (files, memory) belongs to the main
 * thread, `DiskImage`, and outlives it.
 */
export interface Engine {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** True: requests complete in the order of submission. */
  readonly inOrder: boolean;
  /** Becomes readable when `reap` has something; -1: all completes within `submit`. */
  readonly completionFd: number;
  /** Requests that were taken and not yet handed out by `reap`. */
  readonly pending: number;

  /**
   * Takes requests from row `first` on, in order. Returns how many; the rest had no room, and is
   * offered again after a `reap`. Segments must stay mapped until their request has completed.
   */
  submit(batch: IoBatch, first: number): number;

  /** Replaces the content of `done` by requests that have completed. Returns how many. */
  reap(done: IoDone): number;

  /**
   * About to wait for `completionFd`: true when there is something to reap already. An engine that
   * has this may leave `completionFd` silent from a `reap` until the next call, once it was called;
   * one that has not always signals.
   */
  arm?(): boolean;

  /**
   * What it would hold back is to go now, at the next `submit`: somebody waits for it. An engine
   * that holds nothing back has none.
   */
  hurry?(): void;

  /** -errno with which flushes and IO_FUA fail for good; 0, or left out: none known. */
  readonly failedFlush?: number;

  /** Waits until nothing uses memory of a request that was submitted; `reap` has them all then. */
  settle(): void;

  /** The image has another size now. */
  resize(sizeBytes: number): void;

  /** Once nothing is pending. The image stays open. */
  close(): void;
}
