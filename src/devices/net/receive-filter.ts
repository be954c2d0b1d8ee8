/**
 * What a driver asked to receive through its control queue. Until it asks for less, a port is
 * promiscuous, as hosts without a control queue are. Virtio 1.2, 5.1.6.5.1 "Packet Receive
 * Filtering", 5.1.6.5.2 "Setting MAC Address Filtering", 5.1.6.5.3 "VLAN Filtering".
 */
import type { FrameBatch } from '../../switch/frame-batch.ts';
import { formatMac, parseMac } from '../../wire/ethernet.ts';

/** Addresses that one MAC_TABLE_SET may hold, unicast and multicast each. Linux sends up to 64. */
export const FILTER_ADDRESSES_MAX = 256;

const VLAN_WORDS = 4096 / 32;

/** All that a driver can set, for a successor. */
export type FilterState = {
  readonly promiscuous: boolean;
  readonly allMulticast: boolean;
  readonly allUnicast: boolean;
  readonly noMulticast: boolean;
  readonly noUnicast: boolean;
  readonly noBroadcast: boolean;
  readonly own: string | null;
  readonly addresses: readonly string[];
  /** VLANs that pass; null: the driver said nothing of VLANs, all pass. */
  readonly vlans: readonly number[] | null;
};

export class ReceiveFilter {
  /** False while everything passes, which is what the data plane tests. */
  active = false;
  promiscuous = true;
  allMulticast = false;
  allUnicast = false;
  noMulticast = false;
  noUnicast = false;
  noBroadcast = false;
  /** The driver's own address as 48-bit number; -1 unknown, then unicast is not filtered. */
  #own = -1;
  #initialOwn = -1;
  #addresses = new Set<number>();
  #vlans: Uint32Array | null = null;

  /** The address in the configuration space, which a reset returns to. */
  setInitialAddress(mac: Uint8Array | null): void {
    this.#initialOwn = mac === null ? -1 : macNumber(mac, 0);
    this.#own = this.#initialOwn;
  }

  reset(): void {
    this.promiscuous = true;
    this.allMulticast = this.allUnicast = false;
    this.noMulticast = this.noUnicast = this.noBroadcast = false;
    this.#own = this.#initialOwn;
    this.#addresses = new Set();
    this.#vlans = null;
    this.update();
  }

  setOwn(bytes: Uint8Array, at: number): void {
    this.#own = macNumber(bytes, at);
    this.update();
  }

  setAddresses(addresses: Set<number>): void {
    this.#addresses = addresses;
    this.update();
  }

  /** The first VLAN command makes the table count; before it tagged frames pass. */
  setVlan(vid: number, wanted: boolean): void {
    this.#vlans ??= new Uint32Array(VLAN_WORDS);
    const bit = 1 << (vid & 31);
    if (wanted) this.#vlans[vid >> 5] |= bit;
    else this.#vlans[vid >> 5] &= ~bit;
    this.update();
  }

  save(): FilterState {
    const { promiscuous, allMulticast, allUnicast } = this;
    const { noMulticast, noUnicast, noBroadcast } = this;
    const words = this.#vlans;
    const isSet = (vid: number): boolean => ((words![vid >> 5]! >> (vid & 31)) & 1) === 1;
    return {
      promiscuous,
      allMulticast,
      allUnicast,
      noMulticast,
      noUnicast,
      noBroadcast,
      own: this.#own === -1 ? null : macText(this.#own),
      addresses: Array.from(this.#addresses, macText),
      vlans: words && Array.from({ length: 4096 }, (_, vid) => vid).filter(isSet),
    };
  }

  /** Takes over what `save` returned and somebody checked. */
  load(state: FilterState): void {
    const { own, addresses, vlans, ...modes } = state;
    Object.assign(this, modes);
    this.#own = own === null ? -1 : macNumber(parseMac(own)!, 0);
    this.#addresses = new Set(addresses.map((address) => macNumber(parseMac(address)!, 0)));
    this.#vlans = vlans && new Uint32Array(VLAN_WORDS);
    for (const vid of vlans ?? []) this.#vlans![vid >> 5]! |= 1 << (vid & 31);
    this.update();
  }

  update(): void {
    this.active = !this.promiscuous || this.#vlans !== null;
  }

  /** Copies the wanted ones of `list[0 .. count)` to `kept`; returns how many. */
  apply(batch: FrameBatch, list: Int32Array, count: number, kept: Int32Array): number {
    let n = 0;
    for (let k = 0; k < count; k++) {
      const i = list[k];
      if (this.#wants(batch.headerView, batch.headerAt[i])) kept[n++] = i;
    }
    return n;
  }

  #wants(headers: DataView, at: number): boolean {
    const vlans = this.#vlans;
    if (vlans !== null && headers.getUint16(at + 12) === 0x8100) {
      const vid = headers.getUint16(at + 14) & 0xfff;
      if (vid !== 0 && (vlans[vid >> 5] & (1 << (vid & 31))) === 0) return false;
    }
    if (this.promiscuous) return true;
    const address = headers.getUint16(at) * 0x1_0000_0000 + headers.getUint32(at + 2);
    if (address === 0xffff_ffff_ffff) return !this.noBroadcast;
    if (headers.getUint8(at) & 1) {
      return !this.noMulticast && (this.allMulticast || this.#addresses.has(address));
    }
    if (this.noUnicast) return false;
    return (
      this.allUnicast || this.#own === -1 || address === this.#own || this.#addresses.has(address)
    );
  }
}

function macText(number: number): string {
  const bytes = new Uint8Array(6);
  for (let i = 5; i >= 0; i--, number = Math.floor(number / 256)) bytes[i] = number % 256;
  return formatMac(bytes);
}

/** Six bytes as one number, so that addresses can be compared and kept in a Set. */
export function macNumber(bytes: Uint8Array, at: number): number {
  let value = 0;
  for (let i = 0; i < 6; i++) value = value * 256 + bytes[at + i];
  return value;
}
