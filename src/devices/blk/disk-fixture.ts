/**
 * A driver for tests: rings and buffers in private memory, attached to a BlkPlane directly, without
 * sessions and workers. The test calls `poll` where a worker's loop would.
 */
import { assert } from '../../base/assert.ts';
import { EMPTY_ADDRESS_MAP, PrivateMemory } from '../../memory/index.ts';
import { DRAINING, type PlaneEvent, type VringAttach } from '../../runtime/data-plane.ts';
import { type DiskImage, type Engine, type EngineSpec, openEngine } from '../../storage/index.ts';
import { arena } from '../../sys/arena.ts';
import { PAIR_BASE_GPA, QueuePair, queuePairBytes } from '../../virtqueue/driver/queue-pair.ts';
import { BlkRequestHeader } from '../../wire/virtio-blk.ts';
import { PACKED_BASE_FRESH } from '../../wire/virtio.ts';
import { FixtureQueue, type Piece } from '../disk/fixture-queue.ts';
import { BlkDevice, type BlkDeviceOptions } from './blk-device.ts';
import { BlkPlane, type DiskStatus } from './blk-plane.ts';

export type DiskFixtureOptions = {
  readonly image: DiskImage;
  readonly queues?: number;
  readonly ringSize?: number;
  readonly packed?: boolean;
  readonly indirect?: boolean;
  readonly iotlb?: boolean;
  /** Any number, nobody waits for it; default -1: the driver does not kick. */
  readonly kickFd?: number;
  /** An eventfd; default: the driver polls. */
  readonly callFd?: number;
  /** Acknowledged by the driver; default: all that is offered. */
  readonly features?: bigint;
  readonly inflight?: VringAttach['inflight'];
  /** Region handles of the guest's memory. */
  readonly regions?: readonly number[];
  /** Bit n of the dirty log is guest page n. */
  readonly log?: PrivateMemory;
  /** What the device is beside. */
  readonly device?: Partial<BlkDeviceOptions>;
  /** `AddDisk.failedFlush`. */
  readonly failedFlush?: number;
  readonly open?: (spec: EngineSpec) => Engine;
};

/** Answer of a request: its status byte, what used.len said, and the data that was read. */
export type Answer = { readonly status: number; readonly len: number; readonly data: Uint8Array };

const DATA_BYTES = 4 << 20;
export const UNTOUCHED = 0xa5;

export class BlkFixtureQueue extends FixtureQueue {
  /** A header in memory of its own. */
  header(type: number, sector: bigint): Piece {
    const gpa = this.alloc(16);
    BlkRequestHeader.write(arena().view, this.at(gpa), { type, ioprio: 0, sector });
    return { gpa, len: 16 };
  }

  status(): Piece {
    return this.put(Uint8Array.of(UNTOUCHED));
  }
}

export class DiskFixture {
  readonly device: BlkDevice;
  plane: BlkPlane;
  /** Tokens of descriptors that the plane waits for. */
  readonly watched = new Map<number, number>();
  readonly queues: BlkFixtureQueue[] = [];
  readonly events: PlaneEvent[] = [];
  readonly #memory: PrivateMemory[] = [];
  readonly #options: DiskFixtureOptions;

  constructor(options: DiskFixtureOptions) {
    this.#options = options;
    const { image, queues = 1, packed = false, ringSize = 64 } = options;
    const { sizeBytes, readOnly } = image;
    this.device = new BlkDevice({
      sizeBytes,
      readOnly,
      queues,
      blockBytes: 512,
      packed: true,
      iommu: true,
      ...options.device,
    });
    this.plane = this.#addPlane();
    for (let index = 0; index < queues; index++) {
      const shape = {
        size: ringSize,
        packed,
        eventIdx: true,
        indirect: options.indirect ?? true,
        dataBytes: DATA_BYTES,
        tableEntries: 32,
      };
      const memory = PrivateMemory.allocate(queuePairBytes(shape));
      this.#memory.push(memory);
      const at = { buffer: arena().buffer, offset: memory.offset };
      this.queues.push(new BlkFixtureQueue(new QueuePair({ ...shape, memory: at })));
      this.attach(index, packed ? PACKED_BASE_FRESH : 0);
    }
  }

  #addPlane(): BlkPlane {
    const { image, open = openEngine, queues = 1 } = this.#options;
    const context = {
      watch: (fd: number, token: number) => void this.watched.set(fd, token),
      unwatch: () => undefined,
      emit: (event: PlaneEvent) => void this.events.push(event),
      spinMs: 0,
      options: null,
    };
    const plane = new BlkPlane(context, open);
    const { cache } = this.device;
    const { lifetime = null } = this.#options.device ?? {};
    const { failedFlush = 0 } = this.#options;
    const { zones = null } = image;
    const common = { device: 0, queues, serial: 'serial-0123', lifetime, cache, zones };
    const add = { ...common, failedFlush, image: image.spec };
    plane.command('addDisk', add);
    return plane;
  }

  /** kill -9, and a process that follows: a new plane; rings are attached by the test. */
  crash(): void {
    this.plane = this.#addPlane();
  }

  attach(index: number, base: number): void {
    const { pair } = this.queues[index]!;
    const { iotlb = false, inflight = null, log = null, regions = [] } = this.#options;
    const { features = this.device.features } = this.#options;
    this.plane.attachVring({
      device: 0,
      index,
      config: { ...pair.config, base },
      map: iotlb ? EMPTY_ADDRESS_MAP : pair.map,
      regions,
      features,
      kickFd: this.#options.kickFd ?? -1,
      callFd: this.#options.callFd ?? -1,
      injectedQueue: -1,
      errFd: -1,
      enabled: true,
      iotlb,
      log: log === null ? null : logOf(log, pair),
      inflight,
      drain: true,
    });
  }

  /** Rounds until nothing is done any more. */
  poll(): number {
    let total = 0;
    for (let work = -1; work !== 0; total += work) work = this.plane.poll(performance.now());
    return total;
  }

  /** One request with plain framing, carried out. */
  request(type: number, sector: bigint, out: Uint8Array, inBytes: number, index = 0): Answer {
    const queue = this.queues[index]!;
    const data = { gpa: queue.alloc(inBytes), len: inBytes };
    const status = queue.status();
    const readable = [queue.header(type, sector), ...(out.length > 0 ? [queue.put(out)] : [])];
    const id = queue.add(readable, inBytes > 0 ? [data, status] : [status], true);
    this.poll();
    const len = queue.reap().get(id);
    assert(len !== undefined, 'the request came back');
    return { status: queue.read(status.gpa, 1)[0]!, len, data: queue.read(data.gpa, inBytes) };
  }

  status(): DiskStatus {
    return this.plane.command('diskStatus', { device: 0 }) as DiskStatus;
  }

  detach(index: number): number {
    const base = this.plane.detachVring(0, index);
    assert(base !== DRAINING, 'nothing is under way');
    return base;
  }

  close(): void {
    for (let index = 0; index < this.queues.length; index++) this.detach(index);
    this.plane.command('removeDisk', { device: 0 });
    for (const memory of this.#memory) memory.close();
    this.#options.image.close();
  }
}

function logOf(log: PrivateMemory, pair: QueuePair): VringAttach['log'] {
  const { offset, sizeBytes, handle } = log;
  const usedGpa = pair.config.usedOffset - pair.offset + PAIR_BASE_GPA;
  return { offset, sizeBytes, handle, usedGpa, gpa: pair.map };
}
