/**
 * What a front-end knows of its session: enough of the state to tell which messages are legal now,
 * by the table's own gates and rules. Follows what was said, not what the back-end did with it.
 */
import * as wire from '../../wire/vhost-user.ts';
import type { VringFd } from '../../wire/vhost-user-parse.ts';
import { FRONT_END_MESSAGES, type MessageEntry, REQUEST } from '../message-table.ts';
import type { ProtocolState, VringSetup } from '../state-rules.ts';
import { REGION_BYTES, UVA_BASE } from './conversation.ts';

const regionNumber = ({ userAddr }: wire.MemoryRegion): number =>
  Number((userAddr - UVA_BASE) / BigInt(REGION_BYTES));

const has = (bits: bigint | null, bit: number): boolean =>
  (((bits ?? 0n) >> BigInt(bit)) & 1n) === 1n;

type Ring = {
  size: number;
  base: number | null;
  bigEndian: boolean;
  hasAddresses: boolean;
  /** SET_VRING_KICK came, and no GET_VRING_BASE since. */
  hasKick: boolean;
};

export class SessionModel implements ProtocolState {
  features: bigint | null = null;
  protocolFeatures: bigint | null = null;
  postcopy: 'none' | 'advised' | 'listening' = 'none';
  stateTransfer = false;
  /** Numbers of the regions that were shared, by `regionNumber`. */
  readonly regions = new Set<number>();
  readonly #rings = new Map<number, Ring>();

  isRunning(index: number): boolean {
    const ring = this.#rings.get(index);
    if (ring === undefined || this.regions.size === 0 || this.features === null) return false;
    return ring.size > 0 && ring.hasAddresses && ring.hasKick;
  }

  vringSetup(index: number): VringSetup | null {
    return this.#rings.get(index) ?? null;
  }

  get runningVrings(): number {
    return [...this.#rings.keys()].filter((index) => this.isRunning(index)).length;
  }

  acked(bit: number): boolean {
    return has(this.protocolFeatures, bit);
  }

  ackedVirtio(bit: number): boolean {
    return has(this.features, bit);
  }

  /** Messages whose gates are open. Whether a payload is legal is `allows`. */
  open(): MessageEntry[] {
    return [...FRONT_END_MESSAGES.values()].filter(({ needs, needsVirtio }) => {
      const isNegotiated = needs === null || this.acked(needs);
      return isNegotiated && (needsVirtio === null || this.ackedVirtio(needsVirtio));
    });
  }

  allows<T>(entry: MessageEntry<T>, value: T): boolean {
    return entry.legal.every((rule) => rule.holds(this, value));
  }

  /** A valid message was sent. */
  apply(entry: MessageEntry, value: unknown): void {
    const ring = (index: number): Ring => {
      const known = this.#rings.get(index) ?? {
        size: 0,
        base: null,
        bigEndian: false,
        hasAddresses: false,
        hasKick: false,
      };
      this.#rings.set(index, known);
      return known;
    };
    switch (entry.id) {
      case REQUEST.SET_FEATURES.id:
        this.features = value as bigint;
        break;
      case REQUEST.SET_PROTOCOL_FEATURES.id:
        this.protocolFeatures = value as bigint;
        break;
      case REQUEST.SET_MEM_TABLE.id:
        this.regions.clear();
        for (const each of value as wire.MemoryRegion[]) this.regions.add(regionNumber(each));
        break;
      case REQUEST.ADD_MEM_REG.id:
        this.regions.add(regionNumber(value as wire.MemoryRegion));
        break;
      case REQUEST.REM_MEM_REG.id:
        this.regions.delete(regionNumber(value as wire.MemoryRegion));
        break;
      case REQUEST.SET_VRING_NUM.id:
        ring((value as wire.VringState).index).size = (value as wire.VringState).num;
        break;
      case REQUEST.SET_VRING_BASE.id:
        ring((value as wire.VringState).index).base = (value as wire.VringState).num;
        break;
      case REQUEST.SET_VRING_ENDIAN.id: {
        const { index, bigEndian } = value as { index: number; bigEndian: boolean };
        ring(index).bigEndian = bigEndian;
        break;
      }
      case REQUEST.SET_VRING_ADDR.id:
        ring((value as wire.VringAddr).index).hasAddresses = true;
        break;
      case REQUEST.SET_VRING_KICK.id:
        ring((value as VringFd).index).hasKick = true;
        break;
      case REQUEST.GET_VRING_BASE.id:
        ring((value as wire.VringState).index).hasKick = false;
        break;
      case REQUEST.RESET_DEVICE.id:
        for (const each of this.#rings.values()) each.hasKick = false;
        break;
      case REQUEST.POSTCOPY_ADVISE.id:
        this.postcopy = 'advised';
        break;
      case REQUEST.POSTCOPY_LISTEN.id:
        this.postcopy = 'listening';
        break;
      case REQUEST.POSTCOPY_END.id:
        this.postcopy = 'none';
        break;
      case REQUEST.SET_DEVICE_STATE_FD.id:
        this.stateTransfer = true;
        break;
      case REQUEST.CHECK_DEVICE_STATE.id:
        this.stateTransfer = false;
    }
  }
}
