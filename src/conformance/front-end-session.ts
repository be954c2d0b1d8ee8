/**
 * A back-end for a front-end under test: offers much, answers everything, completes what comes
 * through the rings, and shows all of it to a FrontEndWatch.
 */
import {
  ChainBatch,
  DeviceQueue,
  faultName,
  needsCall,
  putUsed,
  ringBase,
  takeChains,
} from '../virtqueue/index.ts';
import { arena, createMemfd, drainEventfd, type Fd, signalEventfd } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import {
  hasFeature,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../wire/virtio.ts';
import { EVENT_MESSAGE, REQUEST } from '../vhost-user/index.ts';
import type { FrontEndDevice } from './front-end-devices.ts';
import type { Findings } from './front-end-watch.ts';
import { FrontEndWatch } from './front-end-watch.ts';
import { closeAll, encodeMessage, type RawMessage, RawSocket } from './raw-socket.ts';
import { describeMessage, type Transcript } from './transcript.ts';

export type SessionOptions = {
  readonly device: FrontEndDevice;
  readonly findings: Findings;
  readonly transcript: Transcript;
  /** Refuse memory, and see what the front-end does. */
  readonly refuseMemory?: boolean;
};

const REPLY = wire.VHOST_USER_VERSION | wire.VHOST_USER_REPLY_MASK;
const RING_POLL_MS = 2;
const INFLIGHT_BYTES_PER_QUEUE = 16 + 16 * 32768;
const NONE = new Uint8Array(0);

function u64(value: bigint | number): Uint8Array {
  return wire.U64Payload.encode({ value: BigInt(value) });
}

type Running = { readonly queue: DeviceQueue };

export class FrontEndSession {
  readonly watch: FrontEndWatch;
  readonly #socket: RawSocket;
  readonly #options: SessionOptions;
  readonly #batch = new ChainBatch();
  readonly #running = new Map<number, Running>();
  #channel: RawSocket | null = null;
  #inflight: Fd | null = null;
  #status = 0;
  /** Chains that were completed. */
  completed = 0;
  refused = 0;
  #kicksAfterRefusal = 0;

  /** Takes the socket over. */
  constructor(socket: Fd, options: SessionOptions) {
    const { device, findings } = options;
    this.#socket = new RawSocket(socket);
    this.#options = options;
    const offered = { virtio: device.features, protocol: device.protocolFeatures };
    this.watch = new FrontEndWatch(findings, offered, device.rings);
  }

  /** Serves until the front-end ends the session or `until` says so. True: it ended it. */
  async serve(until: () => boolean): Promise<boolean> {
    for (;;) {
      const got = await this.#socket.receive(RING_POLL_MS);
      if (got === 'closed' || got === 'partial') {
        this.#options.transcript.add('<', 'the front-end closed the connection');
        return true;
      }
      if (got !== 'timeout') await this.#handle(got);
      this.#work();
      if (until()) return false;
    }
  }

  /** The front-end sees its back-end go. */
  close(): void {
    this.#socket.close();
    this.#channel?.close();
    this.#inflight?.close();
    this.watch.close();
  }

  /** CONFIG_CHANGE_MSG over the channel, where there is one. */
  async configChange(): Promise<void> {
    const channel = this.#channel;
    const { watch } = this;
    const acked = watch.protocolFeatures ?? 0n;
    if (channel === null || !watch.acks) return;
    if (!hasFeature(acked, wire.VHOST_USER_PROTOCOL_F_CONFIG)) return;
    this.#options.transcript.add('>', '(channel) CONFIG_CHANGE_MSG need_reply');
    const flags = wire.VHOST_USER_VERSION | wire.VHOST_USER_NEED_REPLY_MASK;
    await channel.send(encodeMessage(EVENT_MESSAGE.CONFIG_CHANGE_MSG.id, flags, NONE));
    // It may ask GET_CONFIG before it answers: both sockets are served.
    const deadline = performance.now() + 2000;
    for (;;) {
      const got = await channel.receive(5);
      if (typeof got !== 'string') {
        const zero = got.payload.length === 8 && got.payload.every((byte) => byte === 0);
        this.#options.transcript.add('<', '(channel) ack');
        watch.judge('FE-CHAN-002', zero, 'CONFIG_CHANGE_MSG was not acked with zero');
        closeAll(got.fds);
        return;
      }
      if (got !== 'timeout' || performance.now() > deadline) break;
      const request = await this.#socket.receive(5);
      if (typeof request !== 'string') await this.#handle(request);
    }
    watch.judge('FE-CHAN-002', false, 'CONFIG_CHANGE_MSG was not answered');
  }

  get kickedAfterRefusal(): boolean {
    return this.#kicksAfterRefusal > 0;
  }

  async #handle(message: RawMessage): Promise<void> {
    const { request, flags, payload, fds } = message;
    const shown = { request, flags, size: payload.length, payload, fdCount: fds.length };
    this.#options.transcript.add('<', describeMessage(shown));
    if (request === REQUEST.SET_BACKEND_REQ_FD.id && fds.length === 1) {
      this.#channel?.close();
      this.#channel = new RawSocket((fds[0] as Fd).dup());
    }
    this.watch.take(message);
    const answer = this.#answer(message);
    closeAll(fds);
    if (answer === null) return;
    const reply = encodeMessage(request, REPLY, answer);
    const described = { request, flags: REPLY, size: answer.length, payload: answer, fdCount: 0 };
    this.#options.transcript.add('>', describeMessage(described));
    const withFd = request === REQUEST.GET_INFLIGHT_FD.id && this.#inflight !== null;
    await this.#socket.send(reply, withFd ? [(this.#inflight as Fd).number] : []);
  }

  #answer({ request, flags, payload }: RawMessage): Uint8Array | null {
    const { device, refuseMemory } = this.#options;
    const need = (flags & wire.VHOST_USER_NEED_REPLY_MASK) !== 0 && this.watch.acks;
    switch (request) {
      case REQUEST.GET_FEATURES.id:
        return u64(device.features);
      case REQUEST.GET_PROTOCOL_FEATURES.id:
        return u64(device.protocolFeatures);
      case REQUEST.GET_QUEUE_NUM.id:
        return u64(device.queueNum);
      case REQUEST.GET_MAX_MEM_SLOTS.id:
        return u64(509);
      case REQUEST.GET_STATUS.id:
        return u64(this.#status);
      case REQUEST.SET_STATUS.id:
        this.#status = payload[0] ?? 0;
        break;
      case REQUEST.SET_LOG_BASE.id:
        return NONE;
      case REQUEST.GET_CONFIG.id:
        return this.#config(payload);
      case REQUEST.GET_VRING_BASE.id:
        return this.#stop(payload);
      case REQUEST.GET_INFLIGHT_FD.id:
        return this.#makeInflight(payload);
      case REQUEST.SET_MEM_TABLE.id:
      case REQUEST.ADD_MEM_REG.id:
        this.#restart();
        if (!refuseMemory || !need) break;
        this.refused++;
        return u64(1);
      default:
    }
    return need ? u64(0) : null;
  }

  #config(payload: Uint8Array): Uint8Array {
    if (payload.length < wire.ConfigHeader.size) return NONE;
    const { offset, sizeBytes } = wire.ConfigHeader.decode(payload);
    const reply = payload.slice();
    reply.fill(0, wire.ConfigHeader.size);
    const { config } = this.#options.device;
    if (offset < config.length) {
      reply.set(config.subarray(offset, offset + sizeBytes), wire.ConfigHeader.size);
    }
    return reply;
  }

  #stop(payload: Uint8Array): Uint8Array {
    if (payload.length !== 8) return NONE;
    const { index } = wire.VringState.decode(payload);
    const ring = this.watch.ring(index);
    const running = this.#running.get(index);
    const base = running === undefined ? (ring.base ?? 0) : ringBase(running.queue);
    this.#running.delete(index);
    if (ring.started) ring.stoppedAt = base;
    ring.started = false;
    ring.kick?.close();
    ring.kick = null;
    ring.kickMessage = false;
    return wire.VringState.encode({ index, num: base });
  }

  #makeInflight(payload: Uint8Array): Uint8Array {
    const padded = new Uint8Array(wire.InflightDescription.size);
    padded.set(payload.subarray(0, padded.length));
    const wanted = wire.InflightDescription.decode(padded);
    const mapBytes = INFLIGHT_BYTES_PER_QUEUE * Math.max(wanted.queueCount, 1);
    this.#inflight?.close();
    this.#inflight = createMemfd('inflight', mapBytes);
    const description = { ...wanted, mapBytes: BigInt(mapBytes), fdOffset: 0n };
    const reply = wire.InflightDescription.encode(description).subarray(0, payload.length);
    this.watch.gaveInflight(reply);
    return reply;
  }

  /** Memory has changed: rings are translated anew, where they are. */
  #restart(): void {
    for (const [index, { queue }] of this.#running) {
      this.watch.ring(index).base = ringBase(queue);
      this.#running.delete(index);
    }
  }

  /** Kicks, and what they are about. */
  #work(): void {
    for (const [index, ring] of this.watch.rings) {
      const kicked = ring.kick === null ? ring.kickMessage : drainEventfd(ring.kick.number) > 0;
      if (kicked && this.refused > 0) this.#kicksAfterRefusal++;
      if (kicked && !this.#running.has(index) && this.refused === 0) this.#start(index);
      if (kicked || this.#running.has(index)) this.#round(index);
    }
  }

  #start(index: number): void {
    const { watch } = this;
    const areas = watch.kicked(index);
    this.#options.transcript.add('*', `ring ${index} was kicked`);
    const { features } = watch;
    if (areas === null || features === null) return;
    const ring = watch.ring(index);
    try {
      const queue = new DeviceQueue(
        {
          size: ring.size,
          packed: hasFeature(features, VIRTIO_F_RING_PACKED),
          eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
          indirect: hasFeature(features, VIRTIO_RING_F_INDIRECT_DESC),
          inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
          base: ring.base ?? 0,
          ...areas,
        },
        watch.memory.gpaMap(),
        arena().buffer,
      );
      this.#running.set(index, { queue });
    } catch (error) {
      watch.judge('FE-RING-004', false, `ring ${index}: ${(error as Error).message}`);
    }
  }

  #round(index: number): void {
    const running = this.#running.get(index);
    const ring = this.watch.ring(index);
    if (running === undefined || !ring.enabled) return;
    const { queue } = running;
    if (!this.#options.device.consumes(index)) return;
    const count = takeChains(queue, this.#batch, 64);
    if (count === 0) return;
    this.watch.judge('FE-RING-006', count > 0, `ring ${index}: ${faultName(count)}`);
    if (count < 0) return;
    for (let row = 0; row < count; row++) this.#options.device.complete(this.#batch, row);
    putUsed(queue, this.#batch, 0, count);
    this.completed += count;
    if (needsCall(queue) && ring.call !== null) signalEventfd(ring.call.number);
  }
}
