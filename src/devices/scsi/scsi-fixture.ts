/**
 * A driver for tests: rings and buffers in private memory, attached to a ScsiPlane directly,
 * without sessions and workers. The test calls `poll` where a worker's loop would.
 */
import { assert } from '../../base/assert.ts';
import { EMPTY_ADDRESS_MAP, PrivateMemory } from '../../memory/index.ts';
import { DRAINING, type PlaneEvent, type VringAttach } from '../../runtime/data-plane.ts';
import { type DiskImage, type Engine, type EngineSpec, openEngine } from '../../storage/index.ts';
import { arena } from '../../sys/arena.ts';
import { QueuePair, queuePairBytes } from '../../virtqueue/driver/queue-pair.ts';
import { decodeSense, type Sense } from '../../wire/scsi.ts';
import {
  encodeScsiLun,
  ScsiCommandResponse,
  ScsiEvent,
  ScsiTaskRequest,
  VIRTIO_SCSI_EVENTQ,
} from '../../wire/virtio-scsi.ts';
import { PACKED_BASE_FRESH } from '../../wire/virtio.ts';
import { FixtureQueue, type Piece } from '../disk/fixture-queue.ts';
import { WORK_MEMORY_BYTES } from './limits.ts';
import { ScsiDevice } from './scsi-device.ts';
import { ScsiPlane, type ScsiStatus } from './scsi-plane.ts';

export type FixtureUnit = {
  readonly target: number;
  readonly lun: number;
  readonly image: DiskImage;
  readonly blockBytes?: number;
};

export type ScsiFixtureOptions = {
  readonly units: readonly FixtureUnit[];
  /** Request queues. */
  readonly queues?: number;
  readonly packed?: boolean;
  readonly iotlb?: boolean;
  readonly features?: bigint;
  readonly inflight?: (index: number) => VringAttach['inflight'];
  readonly kickFd?: number;
  readonly open?: (spec: EngineSpec) => Engine;
};

export type ScsiAnswer = {
  readonly response: number;
  readonly status: number;
  readonly sense: Sense | null;
  readonly residual: number;
  /** used.len, and the data that it covers. */
  readonly len: number;
  readonly data: Uint8Array;
};

const DATA_BYTES = 4 << 20;
const RESPONSE_BYTES = 108;
const UNTOUCHED = 0xa5;
let nextTag = 1n;

/** Big-endian fields of a CDB: `cdb(16, [0, 0x88], [2, 8, lba], [10, 4, blocks])`. */
export function cdb(
  opcode: number,
  size: number,
  ...fields: [number, number, number][]
): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes[0] = opcode;
  for (const [at, width, value] of fields) {
    for (let i = 0, rest = value; i < width; i++, rest = Math.floor(rest / 256)) {
      bytes[at + width - 1 - i] = rest % 256;
    }
  }
  return bytes;
}

/** A command that was put into a ring. */
export type Sent = {
  readonly id: number;
  readonly queue: FixtureQueue;
  readonly tag: bigint;
  readonly response: Piece;
  readonly data: Piece;
};

export class ScsiFixture {
  readonly device: ScsiDevice;
  plane: ScsiPlane;
  readonly watched = new Map<number, number>();
  /** Control, event, request queues. */
  readonly queues: FixtureQueue[] = [];
  readonly events: PlaneEvent[] = [];
  readonly #memory: PrivateMemory[] = [];
  readonly #work = PrivateMemory.allocate(WORK_MEMORY_BYTES);
  readonly #options: ScsiFixtureOptions;
  readonly #came: Map<number, number>[];

  constructor(options: ScsiFixtureOptions) {
    this.#options = options;
    const { queues = 1, packed = false } = options;
    this.device = new ScsiDevice({ queues, packed: true, iommu: true });
    this.plane = this.#addPlane();
    this.#came = Array.from({ length: queues + 2 }, () => new Map<number, number>());
    for (let index = 0; index < queues + 2; index++) {
      const shape = {
        size: 64,
        packed,
        eventIdx: true,
        indirect: true,
        dataBytes: DATA_BYTES,
        tableEntries: 32,
      };
      const memory = PrivateMemory.allocate(queuePairBytes(shape));
      this.#memory.push(memory);
      const at = { buffer: arena().buffer, offset: memory.offset };
      this.queues.push(new FixtureQueue(new QueuePair({ ...shape, memory: at })));
      this.attach(index, packed ? PACKED_BASE_FRESH : 0);
    }
  }

  #addPlane(): ScsiPlane {
    const { units, queues = 1, open = openEngine } = this.#options;
    const context = {
      watch: (fd: number, token: number) => void this.watched.set(fd, token),
      unwatch: () => undefined,
      emit: (event: PlaneEvent) => void this.events.push(event),
      spinMs: 0,
      options: null,
    };
    const plane = new ScsiPlane(context, open);
    const { offset, handle } = this.#work;
    const [work, sizes] = [{ offset, handle }, this.device.sizes];
    plane.command('addScsi', { device: 0, queues: queues + 2, sizes, work });
    for (const unit of units) this.addUnit(unit, plane);
    return plane;
  }

  addUnit({ target, lun, image, blockBytes = 512 }: FixtureUnit, plane = this.plane): void {
    const { spec } = image;
    plane.command('addUnit', { device: 0, target, lun, image: spec, blockBytes, serial: '' });
  }

  /** kill -9, and a process that follows: a new plane; rings are attached by the test. */
  crash(): void {
    this.plane = this.#addPlane();
  }

  attach(index: number, base: number): void {
    const { pair } = this.queues[index]!;
    const { iotlb = false, features = this.device.features } = this.#options;
    this.plane.attachVring({
      device: 0,
      index,
      config: { ...pair.config, base },
      map: iotlb ? EMPTY_ADDRESS_MAP : pair.map,
      regions: [],
      features,
      kickFd: this.#options.kickFd ?? -1,
      callFd: -1,
      injectedQueue: -1,
      errFd: -1,
      enabled: true,
      iotlb,
      log: null,
      inflight: this.#options.inflight?.(index) ?? null,
      drain: true,
    });
  }

  poll(): number {
    let total = 0;
    for (let work = -1; work !== 0; total += work) work = this.plane.poll(performance.now());
    return total;
  }

  /** Puts a command into request queue `queue`; `poll` carries it out. */
  send(
    target: number,
    lun: number,
    command: Uint8Array,
    out: Uint8Array = new Uint8Array(0),
    inBytes = 0,
    index = 0,
    address = encodeScsiLun(target, lun),
  ): Sent {
    const queue = this.queues[2 + index]!;
    const header = new Uint8Array(51);
    const tag = nextTag++;
    header.set(address);
    new DataView(header.buffer).setBigUint64(8, tag, true);
    header.set(command, 19);
    const response = queue.put(new Uint8Array(RESPONSE_BYTES).fill(UNTOUCHED));
    const data = { gpa: queue.alloc(inBytes), len: inBytes };
    const readable = [queue.put(header), ...(out.length > 0 ? [queue.put(out)] : [])];
    const id = queue.add(readable, inBytes > 0 ? [response, data] : [response], true);
    return { id, queue, tag, response, data };
  }

  /** Null: it has not come back. */
  answerOf(sent: Sent): ScsiAnswer | null {
    const came = this.#came[this.queues.indexOf(sent.queue)]!;
    for (const [id, len] of sent.queue.reap()) came.set(id, len);
    const len = came.get(sent.id);
    if (len === undefined) return null;
    came.delete(sent.id);
    const bytes = sent.queue.read(sent.response.gpa, RESPONSE_BYTES);
    const { senseLen, resid, status, response } = ScsiCommandResponse.decode(bytes);
    const sense = senseLen === 0 ? null : decodeSense(bytes.subarray(12, 12 + senseLen));
    const data = sent.queue.read(sent.data.gpa, Math.max(0, len - RESPONSE_BYTES));
    return { response, status, sense, residual: resid, len, data };
  }

  /** One command, carried out. */
  command(
    target: number,
    lun: number,
    bytes: Uint8Array,
    out?: Uint8Array,
    inBytes?: number,
    index?: number,
  ): ScsiAnswer {
    const sent = this.send(target, lun, bytes, out, inBytes, index);
    this.poll();
    const answer = this.answerOf(sent);
    assert(answer !== null, 'the command came back');
    return answer;
  }

  /** Takes unit attentions away, as drivers do. */
  ready(): this {
    for (const { target, lun } of this.#options.units) {
      for (let i = 0; this.command(target, lun, cdb(0, 6)).status !== 0; i++) assert(i < 8);
    }
    return this;
  }

  /** A task management function; null: it waits. `at`: ask again. */
  task(subtype: number, target: number, lun: number, tag = 0n): { answer: () => number | null } {
    const queue = this.queues[0]!;
    const address = encodeScsiLun(target, lun);
    const bytes = ScsiTaskRequest.encode({ type: 0, subtype, lun: address, tag });
    const response = queue.put(Uint8Array.of(UNTOUCHED));
    const id = queue.add([queue.put(bytes)], [response]);
    this.poll();
    const came = this.#came[0]!;
    let isBack = false;
    const answer = (): number | null => {
      for (const [other, len] of queue.reap()) came.set(other, len);
      isBack ||= came.delete(id);
      return isBack ? queue.read(response.gpa, 1)[0]! : null;
    };
    return { answer };
  }

  /** Gives the device a buffer for an event. */
  postEvent(): Piece {
    const queue = this.queues[VIRTIO_SCSI_EVENTQ]!;
    const piece = queue.put(new Uint8Array(ScsiEvent.size));
    queue.add([], [piece]);
    return piece;
  }

  /** What came in such a buffer. */
  event(piece: Piece): ScsiEvent | null {
    const queue = this.queues[VIRTIO_SCSI_EVENTQ]!;
    if (queue.reap().size === 0) return null;
    return ScsiEvent.decode(queue.read(piece.gpa, ScsiEvent.size));
  }

  status(): ScsiStatus {
    return this.plane.command('scsiStatus', { device: 0 }) as ScsiStatus;
  }

  async close(): Promise<void> {
    for (let index = 0; index < this.queues.length; index++) {
      assert(this.plane.detachVring(0, index) !== DRAINING, 'nothing is under way');
    }
    this.plane.command('removeScsi', { device: 0 });
    for (const memory of [this.#work, ...this.#memory]) memory.close();
    for (const { image } of this.#options.units) await image.close();
  }
}
