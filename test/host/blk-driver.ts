/** A virtio-blk driver that is as small as can be: one ring, one request at a time. */
import type { VhostBackend } from '../../src/base/vhost-backend.ts';
import { GuestMemory } from '../../src/memory/index.ts';
import { arena, createEventfd, drainEventfd, signalEventfd } from '../../src/sys/index.ts';
import { startVring } from '../../src/vhost-user/index.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  needsKick,
  publish,
  reapUsed,
  UsedBatch,
} from '../../src/virtqueue/driver/index.ts';
import { BlkRequestHeader } from '../../src/wire/virtio-blk.ts';
import {
  ringLayout,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../../src/wire/virtio.ts';
import { waitFor } from '../peers/scratch.ts';

const RING_SIZE = 64;
const BASE_GPA = 0x5000_0000;
const MEMORY_BYTES = 1 << 20;
/** Header, data and status of the request lie on pages of their own. */
const HEADER_AT = 0x8000;
const STATUS_AT = 0x9000;
const DATA_AT = 0x10000;

export type BlkAnswer = {
  readonly status: number;
  readonly data: Uint8Array;
  /** What the device says that it wrote. */
  readonly written: number;
};

export class BlkDriver {
  readonly backend: VhostBackend;
  readonly memory = GuestMemory.create(MEMORY_BYTES, { baseGpa: BASE_GPA });
  readonly features: bigint;
  readonly #kick = createEventfd('blk kick');
  readonly #call = createEventfd('blk call');
  readonly #queue: DriverQueue;
  readonly #batch = new DriverBatch();
  readonly #used = new UsedBatch();
  calls = 0;

  static async start(backend: VhostBackend, wanted: bigint): Promise<BlkDriver> {
    const features = (await backend.getFeatures()) & wanted;
    const driver = new BlkDriver(backend, features);
    await driver.introduce();
    await driver.startRing(0);
    return driver;
  }

  private constructor(backend: VhostBackend, features: bigint) {
    this.backend = backend;
    this.features = features;
    const { offset } = this.memory;
    const { availAt, usedAt } = ringLayout(RING_SIZE, false);
    this.#queue = new DriverQueue(
      {
        size: RING_SIZE,
        packed: false,
        eventIdx: false,
        indirect: false,
        inOrder: false,
        descOffset: offset,
        availOffset: offset + availAt,
        usedOffset: offset + usedAt,
      },
      arena().buffer,
    );
  }

  /** Guest-physical address of the used ring, for a dirty log. */
  get usedGpa(): bigint {
    return BigInt(BASE_GPA + ringLayout(RING_SIZE, false).usedAt);
  }

  get addresses() {
    const { availAt, usedAt } = ringLayout(RING_SIZE, false);
    const at = (offset: number): bigint => BigInt(this.memory.baseUva + offset);
    return { descUva: at(0), availUva: at(availAt), usedUva: at(usedAt) };
  }

  /** Page of the memory in which the status byte lies. */
  get statusPage(): number {
    return STATUS_AT / 4096;
  }

  /** Everything but the ring; also to a device that was stopped. */
  async introduce(): Promise<void> {
    const { backend } = this;
    const driver = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
    await backend.setOwner();
    await backend.setStatus(driver);
    await backend.setFeatures(this.features);
    await backend.setStatus(driver | VIRTIO_CONFIG_S_FEATURES_OK);
    await backend.setMemTable([this.memory.backendRegion()]);
  }

  async startRing(base: number): Promise<void> {
    const { backend } = this;
    const fds = { kick: this.#kick.number, call: this.#call.number };
    await startVring(backend, 0, { size: RING_SIZE, base, ...this.addresses, ...fds });
    const driver = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
    const running = driver | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
    await backend.setStatus(running);
    signalEventfd(this.#kick.number);
  }

  /** One request; `data` is given to the device, `answerBytes` are taken from it. */
  async request(
    type: number,
    sector: bigint,
    data: Uint8Array,
    answerBytes: number,
  ): Promise<BlkAnswer> {
    this.add(type, sector, data, answerBytes);
    await waitFor('an answer of the device', 20_000, () => {
      if (drainEventfd(this.#call.number) > 0) this.calls++;
      const count = reapUsed(this.#queue, this.#used, 1);
      if (count < 0) throw new Error(`the device broke virtio: ${count}`);
      return count === 1;
    });
    const at = this.memory.offset;
    return {
      status: arena().bytes[at + STATUS_AT]!,
      data: arena().bytes.slice(at + DATA_AT, at + DATA_AT + answerBytes),
      written: this.#used.len[0]!,
    };
  }

  /** Puts a request into the ring, without waiting. */
  add(type: number, sector: bigint, data: Uint8Array, answerBytes: number): void {
    const at = this.memory.offset;
    arena().bytes.set(BlkRequestHeader.encode({ type, ioprio: 0, sector }), at + HEADER_AT);
    arena().bytes.set(data, at + DATA_AT);
    arena().bytes[at + STATUS_AT] = 0xff;
    const readable = [{ gpa: BASE_GPA + HEADER_AT, len: BlkRequestHeader.size }];
    if (data.length > 0) readable.push({ gpa: BASE_GPA + DATA_AT, len: data.length });
    const writable = [{ gpa: BASE_GPA + STATUS_AT, len: 1 }];
    if (answerBytes > 0) writable.unshift({ gpa: BASE_GPA + DATA_AT, len: answerBytes });
    this.#batch.clear();
    this.#batch.addChain(readable, writable);
    if (addChains(this.#queue, this.#batch, 0, 1) !== 1) throw new Error('the ring is full');
    publish(this.#queue);
    if (needsKick(this.#queue)) signalEventfd(this.#kick.number);
  }

  async close(): Promise<void> {
    await this.backend.close();
    this.#kick.close();
    this.#call.close();
    this.memory.close();
  }
}
