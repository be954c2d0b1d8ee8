/**
 * The control queue's driver: one command at a time, each a chain of header and data that the
 * device reads and one byte that it writes. Virtio 1.2, 5.1.6.5.
 */
import { VringError } from '../base/errors.ts';
import { signalEventfd } from '../sys/index.ts';
import { addChains, needsKick, publish, reapUsed } from '../virtqueue/driver/index.ts';
import { faultName } from '../virtqueue/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import {
  NetControlHeader,
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_OK,
} from '../wire/virtio-net.ts';
import type { GuestQueue } from './guest-queue.ts';

/** A device answers at once or not at all. */
const ANSWER_MS = 2000;
const NOT_ANSWERED = 0xff;

export class ControlQueue {
  readonly queue: GuestQueue;
  readonly #onFault: (error: Error) => void;
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;
  /** What the device was told last, by what it is about: a device that comes back knows nothing. */
  readonly #told = new Map<string, readonly [number, number, Uint8Array]>();

  constructor(queue: GuestQueue, onFault: (error: Error) => void) {
    this.queue = queue;
    this.#onFault = onFault;
  }

  /** Behind the data queues, of which there are two without MQ; see virtio 1.2, 5.1.2. */
  setIndex(index: number): void {
    this.queue.index = index;
  }

  close(): void {
    this.#closed = true;
  }

  /** `mode`: VIRTIO_NET_CTRL_RX_PROMISC and its neighbours. */
  async setRxMode(mode: number, on: boolean): Promise<void> {
    await this.#tell(`mode ${mode}`, VIRTIO_NET_CTRL_RX, mode, Uint8Array.of(on ? 1 : 0));
  }

  async setMac(mac: string): Promise<void> {
    const bytes = macBytes(mac);
    await this.#tell('mac', VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, bytes);
  }

  /** The filter table: which unicast and multicast addresses shall arrive. */
  async setMacTable(unicast: readonly string[], multicast: readonly string[]): Promise<void> {
    const data = [unicast, multicast].flatMap((list) => {
      const count = new Uint8Array(4);
      new DataView(count.buffer).setUint32(0, list.length, true);
      return [count, ...list.map(macBytes)];
    });
    const bytes = Buffer.concat(data);
    await this.#tell('table', VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, bytes);
  }

  async setVlan(vid: number, on: boolean): Promise<void> {
    const command = on ? VIRTIO_NET_CTRL_VLAN_ADD : VIRTIO_NET_CTRL_VLAN_DEL;
    await this.#tell(`vlan ${vid}`, VIRTIO_NET_CTRL_VLAN, command, u16Bytes(vid));
    if (!on) this.#told.delete(`vlan ${vid}`);
  }

  setPairs(pairs: number): Promise<void> {
    const data = u16Bytes(pairs);
    return this.#tell('pairs', VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, data);
  }

  /** Tells a device that came back everything that its predecessor had accepted. */
  async restore(): Promise<void> {
    for (const [commandClass, command, data] of this.#told.values()) {
      await this.command(commandClass, command, data);
    }
  }

  acknowledgeAnnounce(): Promise<void> {
    const none = new Uint8Array(0);
    return this.command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, none);
  }

  /**
   * Any command. Resolves when the device accepted it.
   * @throws VringError ERR_VRING_GUEST_CONTROL_REFUSED, ERR_VRING_GUEST_CONTROL_TIMEOUT; a fault.
   */
  command(commandClass: number, command: number, data: Uint8Array): Promise<void> {
    const what = `control command ${commandClass}.${command}`;
    const result = this.#last.then(() => this.#run(what, commandClass, command, data));
    this.#last = result.catch(() => undefined);
    return result;
  }

  async #tell(
    about: string,
    commandClass: number,
    command: number,
    data: Uint8Array,
  ): Promise<void> {
    await this.command(commandClass, command, data);
    this.#told.set(about, [commandClass, command, data]);
  }

  async #run(what: string, commandClass: number, command: number, data: Uint8Array): Promise<void> {
    const { queue } = this;
    const readBytes = NetControlHeader.size + data.length;
    if (readBytes + 1 > queue.slotBytes) {
      throw new VringError('ERR_VRING_GUEST_TOO_LONG', `${what} of ${data.length} bytes`);
    }
    const at = queue.slotOffset[0];
    const gpa = queue.slotGpa[0];
    const slot = new Uint8Array(queue.arena.buffer, at, queue.slotBytes);
    slot.set(NetControlHeader.encode({ class: commandClass, command }));
    slot.set(data, NetControlHeader.size);
    slot[readBytes] = NOT_ANSWERED;
    const readable = [{ gpa, len: NetControlHeader.size }];
    if (data.length > 0) readable.push({ gpa: gpa + NetControlHeader.size, len: data.length });
    queue.batch.clear();
    queue.batch.addChain(readable, [{ gpa: gpa + readBytes, len: 1 }]);
    if (addChains(queue.ring, queue.batch, 0, 1) === 0) {
      throw new VringError('ERR_VRING_GUEST_CONTROL_TIMEOUT', `${what}: the queue is stuck`);
    }
    publish(queue.ring);
    queue.chains++;
    if (needsKick(queue.ring)) {
      queue.kicks++;
      signalEventfd(queue.kick.number);
    }
    await this.#answered(what);
    const ack = slot[readBytes];
    if (ack === VIRTIO_NET_OK) return;
    throw new VringError('ERR_VRING_GUEST_CONTROL_REFUSED', `the device refused ${what} (${ack})`);
  }

  async #answered(what: string): Promise<void> {
    const { ring, used } = this.queue;
    const until = performance.now() + ANSWER_MS;
    while (!this.#closed) {
      const count = reapUsed(ring, used, 1);
      if (count === 1) return;
      if (count < 0) {
        const name = faultName(count);
        const error = new VringError(`ERR_VRING_GUEST_${name}`, `controlq: ${name}`, {
          recovery: 'reset',
        });
        this.#onFault(error);
        throw error;
      }
      if (performance.now() > until) break;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    throw new VringError(
      'ERR_VRING_GUEST_CONTROL_TIMEOUT',
      `${what}: no answer from the device for ${ANSWER_MS} ms`,
    );
  }
}

function u16Bytes(value: number): Uint8Array {
  return Uint8Array.of(value & 0xff, value >> 8);
}

function macBytes(text: string): Uint8Array {
  const bytes = parseMac(text);
  if (bytes === null) throw new VringError('ERR_VRING_GUEST_MAC', `"${text}" is no MAC address`);
  return bytes;
}
