/**
 * The software guest's virtio-scsi driver: control, event and request queues over any vhost-user
 * back-end. Virtio 1.2, 5.6.
 */
import { VringError } from '../base/errors.ts';
import { GuestMemory } from '../memory/index.ts';
import { drainEventfd, pollFd, type Poll, signalEventfd } from '../sys/index.ts';
import { startVring, stopVring, VhostUserFrontend } from '../vhost-user/index.ts';
import { enableCalls } from '../virtqueue/driver/index.ts';
import { decodeSense, type Sense, senseKeyName, KEY_UNIT_ATTENTION } from '../wire/scsi.ts';
import { VHOST_USER_PROTOCOL_F_GPA_ADDRESSES } from '../wire/vhost-user.ts';
import * as scsi from '../wire/virtio-scsi.ts';
import * as virtio from '../wire/virtio.ts';
import { RUNNING } from './attach.ts';
import { ScsiQueue, scsiQueueBytes, type ScsiQueuePlan } from './scsi-queue.ts';

export type ScsiGuestOptions = {
  /** Request queues. */
  readonly queues?: number;
  readonly ringSize?: number;
  readonly packed?: boolean;
  /** Most bytes of data of one command. */
  readonly dataBytes?: number;
  readonly onEvent?: (event: scsi.ScsiEvent) => void;
};

export type ScsiCommand = {
  readonly target: number;
  readonly lun: number;
  readonly cdb: Uint8Array;
  readonly out?: Uint8Array;
  readonly inBytes?: number;
  /** Which request queue. */
  readonly queue?: number;
  readonly tag?: bigint;
};

export type ScsiReply = {
  /** VIRTIO_SCSI_S_*. */
  readonly response: number;
  /** Of SCSI, where the response is OK. */
  readonly status: number;
  readonly sense: Sense | null;
  readonly residual: number;
  readonly data: Uint8Array;
};

/** What other drivers give, too: Linux has eight. */
const EVENT_BUFFERS = 8;
const BASE_GPA = 0x4000_0000;
/** Unit attentions of one unit, one after the other. */
const ATTENTIONS_MAX = 8;
const DRIVER = virtio.VIRTIO_CONFIG_S_ACKNOWLEDGE | virtio.VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK = DRIVER | virtio.VIRTIO_CONFIG_S_FEATURES_OK;
const FEATURES = virtio.featureSet(
  virtio.VIRTIO_F_VERSION_1,
  virtio.VIRTIO_RING_F_EVENT_IDX,
  virtio.VIRTIO_RING_F_INDIRECT_DESC,
  scsi.VIRTIO_SCSI_F_HOTPLUG,
  scsi.VIRTIO_SCSI_F_CHANGE,
);

export class ScsiGuest {
  readonly features: bigint;
  readonly config: scsi.ScsiConfig;
  readonly #backend: VhostUserFrontend;
  readonly #queues: ScsiQueue[] = [];
  readonly #memory: GuestMemory;
  readonly #polls: Poll[] = [];
  readonly #onEvent: (event: scsi.ScsiEvent) => void;
  #nextTag = 1n;
  #closed = false;

  /**
   * Connects to a back-end and starts the rings.
   * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES; SysError: nobody listens.
   */
  static async connect(socket: string, options: ScsiGuestOptions = {}): Promise<ScsiGuest> {
    const backend = await VhostUserFrontend.connect(socket, {});
    let guest: ScsiGuest | null = null;
    try {
      const { packed = false, queues = 1 } = options;
      const features = await negotiate(backend, packed);
      const config = scsi.ScsiConfig.decode(await backend.getConfig(0, scsi.ScsiConfig.size));
      if (queues > config.numQueues) {
        const text = `${queues} request queues are wanted; ${socket} has ${config.numQueues}`;
        throw new VringError('ERR_VRING_GUEST_QUEUES', text);
      }
      guest = new ScsiGuest(backend, options, features, config);
      await guest.#begin();
      return guest;
    } catch (error) {
      if (guest === null) await backend.close();
      else await guest.close();
      throw error;
    }
  }

  private constructor(
    backend: VhostUserFrontend,
    options: ScsiGuestOptions,
    features: bigint,
    config: scsi.ScsiConfig,
  ) {
    this.#backend = backend;
    this.features = features;
    this.config = config;
    this.#onEvent = options.onEvent ?? (() => undefined);
    const plans = planQueues(options, features);
    const sizes = plans.map(scsiQueueBytes);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    this.#memory = GuestMemory.create(total, { baseGpa: BASE_GPA });
    for (const [i, plan] of plans.entries()) {
      const at = sizes.slice(0, i).reduce((sum, size) => sum + size, 0);
      this.#queues.push(new ScsiQueue(plan, this.#memory, at));
    }
  }

  /** Request queues. */
  get queues(): number {
    return this.#queues.length - scsi.VIRTIO_SCSI_REQUESTQ;
  }

  /** One command, as the device answers it: a unit attention is an answer as well. */
  async command(command: ScsiCommand): Promise<ScsiReply> {
    const { target, lun, cdb, out = new Uint8Array(0), inBytes = 0, queue = 0 } = command;
    const { cdbSize, senseSize } = this.config;
    const tag = command.tag ?? this.#nextTag++;
    const header = new Uint8Array(scsi.ScsiCommandRequest.size + cdbSize);
    const address = scsi.encodeScsiLun(target, lun);
    const fields = { lun: address, tag, taskAttr: 0, prio: 0, crn: 0 };
    scsi.ScsiCommandRequest.write(new DataView(header.buffer), 0, fields);
    header.set(cdb, scsi.ScsiCommandRequest.size);
    const answerBytes = scsi.ScsiCommandResponse.size + senseSize;
    const ring = this.#queues[scsi.VIRTIO_SCSI_REQUESTQ + (queue % this.queues)]!;
    const { answer, data } = await ring.request(header, out, answerBytes, inBytes);
    const { senseLen, resid, status, response } = scsi.ScsiCommandResponse.decode(answer);
    const senseAt = scsi.ScsiCommandResponse.size;
    const sense = senseLen === 0 ? null : decodeSense(answer.subarray(senseAt, senseAt + senseLen));
    return { response, status, sense, residual: resid, data };
  }

  /**
   * The data of a command that must succeed; unit attentions are taken, and it is sent again.
   * @throws VringError ERR_VRING_GUEST_SCSI, with what the device said.
   */
  async perform(command: ScsiCommand): Promise<Uint8Array> {
    for (let attentions = 0; ; attentions++) {
      const reply = await this.command(command);
      if (reply.response === 0 && reply.status === 0) return reply.data;
      if (reply.sense?.key === KEY_UNIT_ATTENTION && attentions < ATTENTIONS_MAX) continue;
      const { target, lun, cdb } = command;
      const opcode = `0x${cdb[0]!.toString(16).padStart(2, '0')}`;
      const text = `command ${opcode} to unit ${target}:${lun}: ${describeReply(reply)}`;
      throw new VringError('ERR_VRING_GUEST_SCSI', text);
    }
  }

  /** A task management function, `VIRTIO_SCSI_T_TMF_*`. Resolves to its response. */
  async manage(subtype: number, target: number, lun: number, tag = 0n): Promise<number> {
    const type = scsi.VIRTIO_SCSI_T_TMF;
    const address = scsi.encodeScsiLun(target, lun);
    const header = scsi.ScsiTaskRequest.encode({ type, subtype, lun: address, tag });
    const control = this.#queues[scsi.VIRTIO_SCSI_CONTROLQ]!;
    const { answer } = await control.request(header, new Uint8Array(0), 1, 0);
    return answer[0]!;
  }

  /** Idempotent. Stops the rings if somebody still answers, and releases everything. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const poll of this.#polls) poll.close();
    const closed = new VringError('ERR_VRING_CLOSED', 'the guest is closed');
    try {
      for (const { queue } of this.#queues) await stopVring(this.#backend, queue.index);
    } catch {
      // The back-end went away: nothing of ours runs there any more.
    }
    for (const queue of this.#queues) queue.fail(closed);
    await this.#backend.close();
    for (const queue of this.#queues) queue.close();
    this.#memory.close();
  }

  async #begin(): Promise<void> {
    const backend = this.#backend;
    const gpaAddresses = backend.has(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
    await backend.setMemTable([this.#memory.backendRegion()]);
    for (const ring of this.#queues) {
      const { queue } = ring;
      enableCalls(queue.ring);
      await startVring(backend, queue.index, queue.vring(ring.freshBase, gpaAddresses));
      this.#polls.push(pollFd(queue.call.number, { read: true }, () => this.#called(ring)));
    }
    await backend.setStatus(RUNNING);
    for (let i = 0; i < EVENT_BUFFERS; i++) void this.#listen();
    for (const { queue } of this.#queues) signalEventfd(queue.kick.number);
  }

  #called(ring: ScsiQueue): void {
    if (drainEventfd(ring.queue.call.number) > 0) ring.queue.calls++;
    do while (ring.reap() > 0);
    while (enableCalls(ring.queue.ring));
  }

  /** One buffer of the event queue, again and again. */
  async #listen(): Promise<void> {
    const none = new Uint8Array(0);
    const events = this.#queues[scsi.VIRTIO_SCSI_EVENTQ]!;
    while (!this.#closed) {
      try {
        const { answer } = await events.request(none, none, scsi.ScsiEvent.size, 0);
        this.#onEvent(scsi.ScsiEvent.decode(answer));
      } catch {
        return; // the guest is at its end
      }
    }
  }
}

/** `CHECK CONDITION, MEDIUM ERROR 11/00 at 7`, `response 3`. */
export function describeReply({ response, status, sense }: ScsiReply): string {
  if (response !== 0) return `response ${response}`;
  if (sense === null) return `status 0x${status.toString(16)}`;
  const hex = (value: number): string => value.toString(16).padStart(2, '0');
  const { key, asc, ascq, information, field } = sense;
  const where = information === null ? '' : ` at ${information}`;
  const which = field === null ? '' : `, byte ${field.byte} of the ${field.inCdb ? 'CDB' : 'data'}`;
  return `${senseKeyName(key)} ${hex(asc)}/${hex(ascq)}${where}${which}`;
}

async function negotiate(backend: VhostUserFrontend, packed: boolean): Promise<bigint> {
  const offered = await backend.getFeatures();
  await backend.setOwner();
  const demanded = virtio.featureSet(
    virtio.VIRTIO_F_VERSION_1,
    ...(packed ? [virtio.VIRTIO_F_RING_PACKED] : []),
  );
  const missing = demanded & ~offered;
  if (missing !== 0n) {
    const names = virtio.featureNames(missing, virtio.VIRTIO_ID_SCSI).join(' ');
    throw new VringError('ERR_VRING_GUEST_FEATURE', `the back-end does not offer ${names}`);
  }
  const features = (offered & FEATURES) | demanded;
  await backend.setStatus(DRIVER);
  await backend.setFeatures(features);
  await backend.setStatus(FEATURES_OK);
  return features;
}

function planQueues(options: ScsiGuestOptions, features: bigint): ScsiQueuePlan[] {
  const { queues = 1, ringSize = 128, dataBytes = 1 << 16 } = options;
  const format = {
    packed: virtio.hasFeature(features, virtio.VIRTIO_F_RING_PACKED),
    eventIdx: virtio.hasFeature(features, virtio.VIRTIO_RING_F_EVENT_IDX),
    indirect: virtio.hasFeature(features, virtio.VIRTIO_RING_F_INDIRECT_DESC),
    inOrder: false,
  };
  return Array.from({ length: scsi.VIRTIO_SCSI_REQUESTQ + queues }, (_, index) => {
    const isRequest = index >= scsi.VIRTIO_SCSI_REQUESTQ;
    return {
      ...format,
      index,
      name: isRequest ? `requestq${index}` : index === 0 ? 'controlq' : 'eventq',
      size: isRequest ? ringSize : 64,
      dataBytes: isRequest ? dataBytes : 0,
    };
  });
}
