/**
 * The control virtqueue of a net device: commands of the driver about what it wants to receive and
 * how many queue pairs it uses. Virtio 1.2, 5.1.6.5 "Control Virtqueue".
 *
 * A command is class, command and data in readable buffers and one writable byte for the answer.
 * It is copied before it is judged; a malformed one is answered VIRTIO_NET_ERR, and only a chain
 * without that byte breaks the queue.
 */
import { copySmall } from '../../memory/copy.hot.ts';
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { putUsed, takeChains } from '../../virtqueue/device.hot.ts';
import { FAULT_CHAIN_DIRECTION } from '../../virtqueue/faults.ts';
import * as net from '../../wire/virtio-net.ts';
import type { NetVring } from './net-vring.ts';
import { FILTER_ADDRESSES_MAX, macNumber, type ReceiveFilter } from './receive-filter.ts';

/** Longest command: two address lists at their limit. */
const COMMAND_BYTES_MAX = 2 + 2 * (4 + 6 * FILTER_ADDRESSES_MAX);

/** Commands answered per round, so that a driver cannot keep the worker from its queues. */
const COMMANDS_PER_ROUND = 1;

export class ControlQueue {
  /** Queue pairs in use: one until the driver asks for more (5.1.6.5.6.1). */
  activePairs: number;
  readonly #filter: ReceiveFilter;
  readonly #queuePairs: number;
  readonly #onChange: () => void;
  readonly #command = new Uint8Array(COMMAND_BYTES_MAX);
  readonly #commandView = new DataView(this.#command.buffer);

  constructor(filter: ReceiveFilter, queuePairs: number, onChange: () => void) {
    this.#filter = filter;
    this.#queuePairs = queuePairs;
    this.#onChange = onChange;
    // A VMM that keeps the control queue says which pairs run by SET_VRING_ENABLE alone.
    this.activePairs = queuePairs;
  }

  reset(): void {
    this.activePairs = this.#queuePairs;
  }

  /** Answers what the driver asked; returns how many commands, or a negative fault. */
  process(vring: NetVring, chains: ChainBatch, arena: DataView): number {
    if (!vring.started || vring.fault !== 0) return 0;
    const taken = takeChains(vring.queue, chains, COMMANDS_PER_ROUND);
    if (taken <= 0) return taken;
    for (let i = 0; i < taken; i++) {
      const ackBytes = chains.writeBytes[i];
      if (ackBytes < 1) return FAULT_CHAIN_DIRECTION;
      const ok = this.#run(this.#copyCommand(chains, i, arena));
      const ackSegment = chains.segFirst[i] + chains.readSegs[i];
      arena.setUint8(chains.segOffset[ackSegment], ok ? net.VIRTIO_NET_OK : net.VIRTIO_NET_ERR);
      chains.written[i] = 1;
    }
    putUsed(vring.queue, chains, 0, taken);
    vring.chains += taken;
    vring.touched = true;
    this.#onChange();
    return taken;
  }

  /** Bytes of the command now in `#command`, or 0 for one that is too long. */
  #copyCommand(chains: ChainBatch, i: number, arena: DataView): number {
    if (chains.readBytes[i] > COMMAND_BYTES_MAX) return 0;
    let at = 0;
    const first = chains.segFirst[i];
    for (let s = first; s < first + chains.readSegs[i]; s++) {
      copySmall(this.#commandView, at, arena, chains.segOffset[s], chains.segLen[s]);
      at += chains.segLen[s];
    }
    return at;
  }

  #run(len: number): boolean {
    if (len < 2) return false;
    const data = this.#command.subarray(2, len);
    switch (this.#command[0]) {
      case net.VIRTIO_NET_CTRL_RX:
        return this.#receiveMode(this.#command[1], data);
      case net.VIRTIO_NET_CTRL_MAC:
        return this.#addresses(this.#command[1], data);
      case net.VIRTIO_NET_CTRL_VLAN:
        return this.#vlan(this.#command[1], data);
      case net.VIRTIO_NET_CTRL_ANNOUNCE:
        return this.#command[1] === net.VIRTIO_NET_CTRL_ANNOUNCE_ACK;
      case net.VIRTIO_NET_CTRL_MQ:
        return this.#queuePairsSet(this.#command[1], data);
      default:
        return false;
    }
  }

  #receiveMode(command: number, data: Uint8Array): boolean {
    if (data.length < 1) return false;
    const on = data[0] !== 0;
    const filter = this.#filter;
    if (command === net.VIRTIO_NET_CTRL_RX_PROMISC) filter.promiscuous = on;
    else if (command === net.VIRTIO_NET_CTRL_RX_ALLMULTI) filter.allMulticast = on;
    else if (command === net.VIRTIO_NET_CTRL_RX_ALLUNI) filter.allUnicast = on;
    else if (command === net.VIRTIO_NET_CTRL_RX_NOMULTI) filter.noMulticast = on;
    else if (command === net.VIRTIO_NET_CTRL_RX_NOUNI) filter.noUnicast = on;
    else if (command === net.VIRTIO_NET_CTRL_RX_NOBCAST) filter.noBroadcast = on;
    else return false;
    filter.update();
    return true;
  }

  #addresses(command: number, data: Uint8Array): boolean {
    if (command === net.VIRTIO_NET_CTRL_MAC_ADDR_SET) {
      if (data.length !== 6 || (data[0] & 1) !== 0) return false;
      this.#filter.setOwn(data, 0);
      return true;
    }
    if (command !== net.VIRTIO_NET_CTRL_MAC_TABLE_SET) return false;
    // Two tables behind each other, unicast and multicast: u32 entries, then six bytes each.
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const addresses = new Set<number>();
    let at = 0;
    for (let table = 0; table < 2; table++) {
      if (at + 4 > data.length) return false;
      const entries = view.getUint32(at, true);
      at += 4;
      if (entries > FILTER_ADDRESSES_MAX || at + 6 * entries > data.length) return false;
      for (let e = 0; e < entries; e++, at += 6) addresses.add(macNumber(data, at));
    }
    this.#filter.setAddresses(addresses);
    return true;
  }

  #vlan(command: number, data: Uint8Array): boolean {
    if (data.length < 2) return false;
    const vid = data[0] | (data[1] << 8);
    if (vid > 4095) return false;
    if (command !== net.VIRTIO_NET_CTRL_VLAN_ADD && command !== net.VIRTIO_NET_CTRL_VLAN_DEL) {
      return false;
    }
    this.#filter.setVlan(vid, command === net.VIRTIO_NET_CTRL_VLAN_ADD);
    return true;
  }

  #queuePairsSet(command: number, data: Uint8Array): boolean {
    if (command !== net.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || data.length < 2) return false;
    const pairs = data[0] | (data[1] << 8);
    if (pairs < 1 || pairs > this.#queuePairs) return false;
    this.activePairs = pairs;
    return true;
  }
}
