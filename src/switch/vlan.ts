import { ConfigError } from '../base/errors.ts';
import { MAX_PORTS } from '../base/limits.ts';
import { VID_MAX, VID_MIN } from '../wire/ethernet.ts';

/** How a port takes part in VLANs. */
export type PortVlan =
  | { readonly mode: 'access'; readonly vid: number }
  | {
      readonly mode: 'trunk';
      readonly allowed: readonly number[] | 'all';
      /** VLAN of untagged frames, which leave untagged too; null: they are dropped. */
      readonly native: number | null;
    };

const VLANS = 4096;
const BITS = 32;
/** Words of a set of ports. */
export const PORT_SET_WORDS = MAX_PORTS / BITS;

/** A port's VLAN membership as the data plane reads it. */
export class VlanRules {
  /** VLAN of untagged and priority-tagged frames; 0: they are dropped. */
  readonly untagged: number;
  /** Bit set of the VLANs whose tags the port may send and receive; empty on an access port. */
  readonly allowed: Uint32Array;
  /** True for an access port: any VLAN tag is dropped. */
  readonly access: boolean;

  constructor(vlan: PortVlan) {
    this.access = vlan.mode === 'access';
    this.allowed = new Uint32Array(VLANS / BITS);
    if (vlan.mode === 'access') {
      this.untagged = checkVid(vlan.vid, 'vlan.vid');
      return;
    }
    this.untagged = vlan.native === null ? 0 : checkVid(vlan.native, 'vlan.native');
    if (vlan.allowed === 'all') {
      for (let vid = VID_MIN; vid <= VID_MAX; vid++) this.#allow(vid);
    } else {
      for (const vid of vlan.allowed) this.#allow(checkVid(vid, 'vlan.allowed'));
    }
    if (this.untagged !== 0) this.#allow(this.untagged);
  }

  #allow(vid: number): void {
    this.allowed[vid >>> 5] |= 1 << (vid & 31);
  }

  /** True when frames of the VLAN may leave through the port. */
  isMember(vid: number): boolean {
    return vid === this.untagged || (this.allowed[vid >>> 5] & (1 << (vid & 31))) !== 0;
  }
}

/** Which ports are in which VLAN: one set of MAX_PORTS bits per VLAN. */
export class FloodSets {
  readonly words = new Uint32Array(VLANS * PORT_SET_WORDS);

  add(port: number, rules: VlanRules): void {
    for (let vid = VID_MIN; vid <= VID_MAX; vid++) {
      if (rules.isMember(vid)) this.words[vid * PORT_SET_WORDS + (port >>> 5)] |= 1 << (port & 31);
    }
  }

  remove(port: number): void {
    for (let vid = VID_MIN; vid <= VID_MAX; vid++) {
      this.words[vid * PORT_SET_WORDS + (port >>> 5)] &= ~(1 << (port & 31));
    }
  }
}

function checkVid(vid: number, path: string): number {
  if (Number.isInteger(vid) && vid >= VID_MIN && vid <= VID_MAX) return vid;
  throw new ConfigError(path, `VLAN ${vid} is not in ${VID_MIN} .. ${VID_MAX}`);
}
