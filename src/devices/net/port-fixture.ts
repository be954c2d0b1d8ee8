/**
 * A driver for tests and benches: rings and buffers in private memory, attached to a NetPort
 * directly, without sessions and workers. Addresses are arena offsets (the address map is one
 * range with delta 0), so the same numbers serve both sides.
 */
import { assert } from '../../base/assert.ts';
import { EMPTY_ADDRESS_MAP, Iotlb, PrivateMemory } from '../../memory/index.ts';
import type { AddressMap } from '../../memory/address-map.ts';
import type { PlaneFault, PlaneIotlbMiss, VringAttach } from '../../runtime/data-plane.ts';
import { FRAME_BATCH_BYTES, FrameBatch } from '../../switch/index.ts';
import { arena } from '../../sys/arena.ts';
import {
  addChains,
  DriverBatch,
  type DriverConfig,
  DriverQueue,
  publish,
  reapUsed,
  ringLayout,
  tableBytes,
  UsedBatch,
} from '../../virtqueue/driver/index.ts';
import { VIRTIO_F_VERSION_1, featureSet, hasFeature } from '../../wire/virtio.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
} from '../../wire/virtio.ts';
import { VIRTIO_RING_F_INDIRECT_DESC } from '../../wire/virtio.ts';
import { NetPort } from './net-port.ts';
import { NetVring } from './net-vring.ts';
import type { PortScratch } from './port-scratch.ts';

const RING_BYTES = 64 * 1024;
/** Where indirect tables are in them. */
const TABLES_AT = RING_BYTES / 2;
/** Where a driver behind an IOMMU has its first page. */
const IOVA = 2 ** 40;

export type FixtureOptions = {
  readonly features?: readonly number[];
  readonly queuePairs?: number;
  readonly ringSize?: number;
  /** Bytes of each buffer. */
  readonly bufferBytes?: number;
  /** Entries of an indirect table for each descriptor; none without VIRTIO_RING_F_INDIRECT_DESC. */
  readonly tableEntries?: number;
  readonly mtu?: number;
  readonly mac?: Uint8Array;
  /** With a dirty log, of used rings too. */
  readonly log?: boolean;
  /** Behind an IOMMU with pages of so many bytes, no two of them neighbours where the device is. */
  readonly iommuPageBytes?: number;
  /** Shared by several ports; its owner settles it. */
  readonly scratch?: PortScratch;
};

/** One ring as its driver sees it. */
export class FixtureRing {
  readonly queue: DriverQueue;
  readonly vring: NetVring;
  readonly batch = new DriverBatch();
  readonly used = new UsedBatch();

  constructor(
    port: NetPort,
    index: number,
    at: number,
    size: number,
    features: bigint,
    extras: Pick<VringAttach, 'map' | 'iotlb' | 'log'>,
    tables?: DriverConfig['tables'],
  ) {
    const packed = hasFeature(features, VIRTIO_F_RING_PACKED);
    const layout = ringLayout(size, packed);
    assert(layout.totalBytes <= TABLES_AT);
    const config = {
      size,
      packed,
      eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
      indirect: hasFeature(features, VIRTIO_RING_F_INDIRECT_DESC),
      inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
      descOffset: at,
      availOffset: at + layout.availAt,
      usedOffset: at + layout.usedAt,
    };
    this.queue = new DriverQueue(
      { ...config, ...(tables !== undefined && { tables }) },
      arena().buffer,
    );
    const attach = {
      device: 0,
      index,
      config: { ...config, base: packed ? 0x8000_8000 : 0 },
      regions: [],
      features,
      kickFd: -1,
      callFd: -1,
      injectedQueue: -1,
      errFd: -1,
      enabled: true,
      inflight: null,
      drain: true,
      ...extras,
    };
    this.vring = new NetVring(attach, arena().buffer);
    port.attach(this.vring, features);
    port.iotlb.attach(attach);
    port.changed(this.vring, true);
  }

  /** Adds one chain and shows it to the device; its id. */
  add(
    readable: readonly (readonly [number, number])[],
    writable: readonly (readonly [number, number])[],
    indirect = false,
  ): number {
    const toBuffer = ([gpa, len]: readonly [number, number]): { gpa: number; len: number } => ({
      gpa,
      len,
    });
    this.batch.clear();
    this.batch.addChain(readable.map(toBuffer), writable.map(toBuffer), indirect);
    assert(addChains(this.queue, this.batch, 0, 1) === 1, 'the ring has room');
    publish(this.queue);
    return this.batch.id[0];
  }

  /** What came back: [id, len] each. */
  reap(): [number, number][] {
    const count = reapUsed(this.queue, this.used, this.used.capacity);
    assert(count >= 0, () => `the device broke the ring: ${count}`);
    return Array.from({ length: count }, (_, i) => [this.used.id[i], this.used.len[i]]);
  }
}

export class PortFixture {
  readonly memory: PrivateMemory;
  readonly port: NetPort;
  readonly features: bigint;
  readonly events: PlaneFault[] = [];
  readonly misses: PlaneIotlbMiss[] = [];
  readonly rings: FixtureRing[] = [];
  readonly map: AddressMap;
  readonly bufferBytes: number;
  readonly #buffersAt: number;
  readonly #iommuPageBytes: number;
  /** Dirty log; bit n is the page n of the arena. */
  readonly log: PrivateMemory | null;

  constructor(options: FixtureOptions = {}) {
    const pairs = options.queuePairs ?? 1;
    const size = options.ringSize ?? 256;
    this.bufferBytes = options.bufferBytes ?? 2048;
    this.features = featureSet(VIRTIO_F_VERSION_1, ...(options.features ?? []));
    const rings = 2 * pairs + 1;
    this.memory = PrivateMemory.allocate(rings * RING_BYTES + rings * size * this.bufferBytes);
    this.#iommuPageBytes = options.iommuPageBytes ?? 0;
    this.#buffersAt = this.memory.offset + rings * RING_BYTES;
    const end = this.memory.offset + this.memory.sizeBytes;
    this.log = options.log === true ? PrivateMemory.allocate(Math.ceil(end / 4096 / 8)) : null;
    this.map = {
      count: 1,
      start: new Float64Array([this.memory.offset]),
      end: new Float64Array([this.memory.offset + this.memory.sizeBytes]),
      delta: new Float64Array([0]),
    };
    this.port = new NetPort({
      device: 0,
      queuePairs: pairs,
      mtu: options.mtu ?? 1500,
      mac: options.mac ?? null,
      linkUp: true,
      ...(options.scratch !== undefined && { scratch: options.scratch }),
      emit: (event) => {
        if (event.kind === 'fault') this.events.push(event);
        else if (event.kind === 'iotlb-miss') this.misses.push(event);
      },
    });
    for (let index = 0; index < rings; index++) {
      const at = this.memory.offset + index * RING_BYTES;
      const usedAt = at + ringLayout(size, hasFeature(this.features, VIRTIO_F_RING_PACKED)).usedAt;
      const log = this.log === null ? null : this.#logOf(this.log, usedAt);
      const iotlb = this.#iommuPageBytes > 0;
      const extras = { iotlb, map: iotlb ? EMPTY_ADDRESS_MAP : this.map, log };
      const tables = this.#tablesAt(at + TABLES_AT, options.tableEntries ?? 0, size);
      this.rings.push(new FixtureRing(this.port, index, at, size, this.features, extras, tables));
    }
  }

  #tablesAt(offset: number, entries: number, size: number): DriverConfig['tables'] {
    if (entries === 0) return undefined;
    assert(tableBytes(size, entries) <= RING_BYTES - TABLES_AT);
    return { offset, gpa: this.iova(offset), entries };
  }

  #logOf(memory: PrivateMemory, usedGpa: number): VringAttach['log'] {
    const { offset, sizeBytes, handle } = memory;
    return { offset, sizeBytes, handle, usedGpa, gpa: this.map };
  }

  /** What the driver calls the byte at an arena offset: with an IOMMU, pages change places. */
  iova(at: number): number {
    const page = this.#iommuPageBytes;
    if (page === 0) return at;
    const inside = at - this.memory.offset;
    const n = Math.trunc(inside / page);
    const pages = Math.ceil(this.memory.sizeBytes / page);
    return IOVA + ((n * 7919) % pages) * page + (inside % page);
  }

  /** Tells the port a translation, as an answer to a miss does. */
  translate(iova: number): void {
    const page = this.#iommuPageBytes;
    const pages = Math.ceil(this.memory.sizeBytes / page);
    for (let n = 0; n < pages; n++) {
      const at = this.memory.offset + n * page;
      const start = this.iova(at);
      if (iova < start || iova >= start + page) continue;
      this.port.iotlb.update({ iova: start, sizeBytes: page, offset: at, permissions: 3 });
    }
  }

  /** Tells the port every translation. */
  translateAll(): void {
    const page = this.#iommuPageBytes;
    const all = new Iotlb();
    for (let at = 0; at < this.memory.sizeBytes; at += page) {
      const offset = this.memory.offset + at;
      all.update({ iova: this.iova(offset), sizeBytes: page, offset, permissions: 3 });
    }
    this.port.iotlb.attach({ iotlb: true, map: all.map() });
  }

  /** Arena offset of buffer `n`. */
  buffer(n: number): number {
    return this.#buffersAt + n * this.bufferBytes;
  }

  bytes(at: number, len: number): Uint8Array {
    return arena().bytes.slice(at, at + len);
  }

  write(at: number, bytes: Uint8Array): void {
    arena().bytes.set(bytes, at);
  }

  close(): void {
    this.log?.close();
    this.memory.close();
  }
}

/** A batch with header slots in the arena, for the life of the test. */
export function frameBatch(): FrameBatch {
  const memory = PrivateMemory.allocate(FRAME_BATCH_BYTES);
  return new FrameBatch({ buffer: arena().buffer, at: memory.offset });
}
