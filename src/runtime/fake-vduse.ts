/**
 * The kernel's side of VDUSE for tests, as drivers/vdpa/vdpa_user/vduse_dev.c has it: one device
 * that outlives who serves it, requests that wait, interrupts that are refused before DRIVER_OK.
 * Memory is memfds, so what needs the real IOVA domain is not tested with it.
 */
import { VringError } from '../base/errors.ts';
import { createEventfd, drainEventfd, type Fd, pollFd, type Poll } from '../sys/index.ts';
import { signalEventfd } from '../sys/index.ts';
import type {
  VduseChannel,
  VduseMapping,
  VduseQueueInfo,
  VduseRequest,
} from '../vhost-kernel/index.ts';
import { VIRTIO_CONFIG_S_DRIVER_OK } from '../wire/virtio.ts';

export type FakeMapping = {
  readonly start: number;
  readonly sizeBytes: number;
  readonly fd: Fd;
  readonly fdOffset: number;
  readonly permissions: number;
};

type Asked = { request: VduseRequest; answered: (answer: FakeAnswer) => void; read: boolean };
export type FakeAnswer = { readonly ok: boolean; readonly base: number | null };

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/** The device as the kernel has it. Owned by the test. */
export class FakeVduseKernel {
  features = 0n;
  status = 0;
  readonly queues: (VduseQueueInfo & { kick: Fd | null; kicked: boolean; interrupts: number })[] =
    [];
  readonly config = new Uint8Array(64);
  configInterrupts = 0;
  mappings: FakeMapping[] = [];
  /** `vduse_dev_broken`. */
  broken = false;
  /** Interrupts that were refused because the driver was not at DRIVER_OK. */
  refused = 0;
  readonly ready = createEventfd('requests of a VDUSE device');
  connected: FakeVduse | null = null;
  readonly #asked: Asked[] = [];
  #nextId = 0;

  constructor(queues: number) {
    for (let i = 0; i < queues; i++) {
      this.queues.push({ ...EMPTY_QUEUE, kick: null, kicked: false, interrupts: 0 });
    }
  }

  /** As open(2). */
  open(name = 'fake0'): FakeVduse {
    if (this.connected !== null) throw new VringError('ERR_VRING_VDUSE_BUSY', `${name} is busy`);
    this.connected = new FakeVduse(name, this);
    return this.connected;
  }

  /** As `vduse_dev_msg_sync`, without its timeout. */
  ask(question: DistributiveOmit<VduseRequest, 'id'>): Promise<FakeAnswer> {
    const request = { ...question, id: this.#nextId++ } as VduseRequest;
    return new Promise((answered) => {
      this.#asked.push({ request, answered, read: false });
      signalEventfd(this.ready.number);
    });
  }

  /** As the kernel does for a driver: the status holds only once it was answered. */
  async setStatus(status: number): Promise<boolean> {
    const { ok } = await this.ask({ kind: 'status', status });
    if (status === 0) this.#reset();
    else if (ok) this.status = status;
    return ok;
  }

  kick(index: number): void {
    const queue = this.queues[index]!;
    if (!queue.ready) return;
    if (queue.kick !== null) signalEventfd(queue.kick.number);
    else queue.kicked = true;
  }

  /** The process that serves it is gone: what it read and did not answer waits again. */
  disconnect(): void {
    for (const asked of this.#asked) asked.read = false;
    this.connected = null;
    if (this.#asked.length > 0) signalEventfd(this.ready.number);
  }

  next(): VduseRequest | null {
    const asked = this.#asked.find(({ read }) => !read);
    if (asked === undefined) return null;
    asked.read = true;
    return asked.request;
  }

  answer(id: number, answer: FakeAnswer): boolean {
    const at = this.#asked.findIndex(({ request, read }) => read && request.id === id);
    if (at < 0) return false;
    const [asked] = this.#asked.splice(at, 1);
    asked!.answered(answer);
    return true;
  }

  get waiting(): number {
    return this.#asked.filter(({ read }) => !read).length;
  }

  close(): void {
    this.ready.close();
    for (const { kick } of this.queues) kick?.close();
  }

  #reset(): void {
    this.status = 0;
    this.features = 0n;
    for (const queue of this.queues) {
      queue.kick?.close();
      Object.assign(queue, EMPTY_QUEUE, { kick: null, kicked: false });
    }
  }
}

const EMPTY_QUEUE: VduseQueueInfo = {
  size: 0,
  descIova: 0n,
  driverIova: 0n,
  deviceIova: 0n,
  base: 0,
  ready: false,
};

export class FakeVduse implements VduseChannel {
  readonly name: string;
  /** Not a VDUSE device: what the data plane injects there is refused, and lost. */
  readonly callFd = createEventfd('a VDUSE device');
  readonly #kernel: FakeVduseKernel;
  #poll: Poll | null = null;

  constructor(name: string, kernel: FakeVduseKernel) {
    this.name = name;
    this.#kernel = kernel;
  }

  driverFeatures(): bigint {
    this.#checkBroken();
    return this.#kernel.features;
  }

  queueInfo(index: number): VduseQueueInfo {
    const { size, descIova, driverIova, deviceIova, base, ready } = this.#kernel.queues[index]!;
    return { size, descIova, driverIova, deviceIova, base, ready };
  }

  setKick(index: number, kick: Fd | null): void {
    const queue = this.#kernel.queues[index]!;
    queue.kick?.close();
    queue.kick = kick?.dup() ?? null;
    if (queue.ready && queue.kicked && queue.kick !== null) {
      signalEventfd(queue.kick.number);
      queue.kicked = false;
    }
  }

  injectInterrupt(index: number): boolean {
    this.#checkBroken();
    if (!this.#isDriverOk()) return false;
    this.#kernel.queues[index]!.interrupts++;
    return true;
  }

  setConfig(offset: number, bytes: Uint8Array): void {
    this.#kernel.config.set(bytes, offset);
  }

  injectConfigInterrupt(): boolean {
    if (!this.#isDriverOk()) return false;
    this.#kernel.configInterrupts++;
    return true;
  }

  mapping(start: bigint, last: bigint): VduseMapping | null {
    const found = this.#kernel.mappings
      .filter((each) => each.start <= last && each.start + each.sizeBytes > start)
      .toSorted((a, b) => a.start - b.start)[0];
    if (found === undefined) return null;
    return {
      start: BigInt(found.start),
      last: BigInt(found.start + found.sizeBytes - 1),
      fdOffset: BigInt(found.fdOffset),
      permissions: found.permissions,
      fd: found.fd.dup(),
    };
  }

  bounceBytes(): number {
    return 0;
  }

  registerMemory(): void {
    throw new VringError('ERR_VRING_KERNEL_LACKS', 'the fake has no bounce buffer');
  }

  unregisterMemory(): void {}

  receive(): VduseRequest | null {
    drainEventfd(this.#kernel.ready.number);
    const request = this.#kernel.next();
    if (request === null) this.#checkBroken();
    return request;
  }

  answer(request: VduseRequest, ok: boolean, state?: { base: number }): boolean {
    return this.#kernel.answer(request.id, { ok, base: state?.base ?? null });
  }

  watch(onReady: () => void): Poll {
    this.#poll = pollFd(this.#kernel.ready.number, { read: true }, onReady);
    return this.#poll;
  }

  close(): void {
    if (this.callFd.closed) return;
    this.#poll?.close();
    this.callFd.close();
    this.#kernel.disconnect();
  }

  #isDriverOk(): boolean {
    const ok = (this.#kernel.status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0;
    if (!ok) this.#kernel.refused++;
    return ok;
  }

  #checkBroken(): void {
    if (this.#kernel.broken) throw new VringError('ERR_VRING_VDUSE_BROKEN', `${this.name} broke`);
  }
}
