import type { FrameBatch } from './frame-batch.ts';

/**
 * Sees the frames of one port, for capture. Called with whole batches, only while one is set:
 * a port without a tap costs one test per batch. Must not keep or change anything of the batch.
 */
export interface FrameTap {
  /** Frames [0 .. count) as the port sent them to us, the ones dropped later included. */
  ingress(batch: FrameBatch, count: number): void;
  /** Frames `list[0 .. count)` as the port is about to get them: tags and offloads are final. */
  egress(batch: FrameBatch, list: Int32Array, count: number): void;
}
