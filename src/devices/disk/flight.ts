import { BATCH } from '../../base/limits.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';

/**
 * One batch of chains on its way through an engine: taken at once, used row by row as requests
 * complete. Columns by row of `chains`; owned by one ring and reused.
 */
export class Flight {
  /** Its number in the ring: part of the ids that the engine gives back. */
  readonly number: number;
  readonly chains = new ChainBatch();
  /** Rows that are to be used: those in front of a broken one. */
  count = 0;
  /** Rows that were not used yet. */
  left = 0;
  /** When its chains were taken: the beginning of that round. */
  takenMs = 0.5; // a double from the start, so that the field never changes its kind
  /** An engine's request completed since rows were last used. */
  touched = false;

  /** Engine requests of the row that are under way; -1: the row was used. */
  readonly pending = new Int32Array(BATCH);
  /** VIRTIO_BLK_S_*: the worst of its requests. */
  readonly status = new Int32Array(BATCH);
  /** Arena offset of the status byte. */
  readonly statusAt = new Float64Array(BATCH);
  /** Which counter of the ring it goes to, `COUNT_*`. */
  readonly kind = new Int32Array(BATCH);
  /** Data that it moves. */
  readonly bytes = new Int32Array(BATCH);

  constructor(number: number) {
    this.number = number;
  }
}

/** Ids of engine requests: ring, flight and row. */
const ROWS = 256;
const FLIGHTS = 256;

export function firstId(ring: number, flight: number): number {
  return (ring * FLIGHTS + flight) * ROWS;
}

export const rowOfId = (id: number): number => id & (ROWS - 1);
export const flightOfId = (id: number): number => (id >> 8) & (FLIGHTS - 1);
export const ringOfId = (id: number): number => id >> 16;
