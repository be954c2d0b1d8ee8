/** The driver's side of one ring for tests of planes: without sessions and workers. */
import { assert } from '../../base/assert.ts';
import { arena } from '../../sys/arena.ts';
import type { QueuePair } from '../../virtqueue/driver/queue-pair.ts';
import {
  addChains,
  DriverBatch,
  hasUsed,
  publish,
  reapUsed,
  UsedBatch,
} from '../../virtqueue/driver/index.ts';

export type Piece = { readonly gpa: number; readonly len: number };

/** One ring, and where its buffers are. */
export class FixtureQueue {
  readonly pair: QueuePair;
  readonly batch = new DriverBatch();
  readonly used = new UsedBatch();
  #next = 0;

  constructor(pair: QueuePair) {
    this.pair = pair;
  }

  /** Memory for a buffer, used round and round. */
  alloc(sizeBytes: number): number {
    if (this.#next + sizeBytes > this.pair.dataBytes) this.#next = 0;
    const gpa = this.pair.dataGpa + this.#next;
    this.#next += sizeBytes;
    return gpa;
  }

  at(gpa: number): number {
    return gpa + this.pair.map.delta[0]!;
  }

  write(gpa: number, bytes: Uint8Array): void {
    arena().bytes.set(bytes, this.at(gpa));
  }

  read(gpa: number, sizeBytes: number): Uint8Array {
    return arena().bytes.slice(this.at(gpa), this.at(gpa) + sizeBytes);
  }

  put(bytes: Uint8Array): Piece {
    const gpa = this.alloc(bytes.length);
    this.write(gpa, bytes);
    return { gpa, len: bytes.length };
  }

  /** Adds one chain and shows it to the device; its id. */
  add(readable: readonly Piece[], writable: readonly Piece[], indirect = false): number {
    this.batch.clear();
    this.batch.addChain(readable, writable, indirect);
    assert(addChains(this.pair.driver, this.batch, 0, 1) === 1, 'the ring has room');
    publish(this.pair.driver);
    return this.batch.id[0]!;
  }

  /** What came back: used.len by id. */
  reap(): Map<number, number> {
    const result = new Map<number, number>();
    while (hasUsed(this.pair.driver)) {
      const count = reapUsed(this.pair.driver, this.used, this.used.capacity);
      assert(count > 0, () => `the device broke the ring: ${count}`);
      for (let i = 0; i < count; i++) {
        assert(!result.has(this.used.id[i]!), 'a chain came back twice');
        result.set(this.used.id[i]!, this.used.len[i]!);
      }
    }
    return result;
  }
}
