/**
 * The table of who has which MAC address, for both families. One resolution per address is under
 * way at a time; everybody who asks meanwhile waits for it.
 */
import { VringError } from '../base/errors.ts';
import type { IpAddress } from './ip-address.ts';

/** Neighbours kept; the oldest gives way. A test guest speaks with a handful. */
export const MAX_NEIGHBOURS = 256;
/** Addresses being resolved at once; more are refused. */
export const MAX_RESOLUTIONS = 64;

export type NeighbourOptions = {
  /** Sends an ARP request or a neighbour solicitation. */
  readonly solicit: (address: IpAddress) => void;
  /** Between two solicitations. */
  readonly retryMs: number;
  /** Solicitations before the address counts as unreachable. */
  readonly attempts: number;
};

type Resolution = {
  readonly promise: Promise<Uint8Array>;
  readonly settle: (mac: Uint8Array | VringError) => void;
};

export class NeighbourTable {
  readonly #options: NeighbourOptions;
  readonly #macs = new Map<string, Uint8Array>();
  readonly #pending = new Map<string, Resolution>();

  constructor(options: NeighbourOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#macs.size;
  }

  lookup(addressText: string): Uint8Array | null {
    return this.#macs.get(addressText) ?? null;
  }

  /** Somebody said who has `address`. Kept when we asked, knew it already, or `create` says so. */
  learn(address: IpAddress, mac: Uint8Array, create: boolean): void {
    const pending = this.#pending.get(address.text);
    const known = this.#macs.delete(address.text); // deleted and set again: it is the newest now
    if (!known && !create && pending === undefined) return;
    if (this.#macs.size >= MAX_NEIGHBOURS) {
      for (const oldest of this.#macs.keys()) {
        this.#macs.delete(oldest);
        break;
      }
    }
    const copy = mac.slice();
    this.#macs.set(address.text, copy);
    pending?.settle(copy);
  }

  /**
   * The MAC address of a neighbour, from the table or asked for.
   * @throws VringError ERR_VRING_GUEST_UNREACHABLE when nobody answers.
   */
  async resolve(address: IpAddress): Promise<Uint8Array> {
    const known = this.#macs.get(address.text);
    if (known !== undefined) return known;
    const pending = this.#pending.get(address.text) ?? this.#start(address);
    return pending.promise;
  }

  close(): void {
    for (const pending of this.#pending.values()) {
      pending.settle(new VringError('ERR_VRING_CLOSED', 'the stack was closed'));
    }
    this.#macs.clear();
  }

  #start(address: IpAddress): Resolution {
    if (this.#pending.size >= MAX_RESOLUTIONS) {
      throw new VringError('ERR_VRING_GUEST_BUSY', 'too many addresses are being resolved', {
        recovery: 'retry',
      });
    }
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    promise.catch(() => {}); // whoever awaits it sees it; nobody is no crash
    let attempts = 0;
    const settle = (result: Uint8Array | VringError): void => {
      clearInterval(timer);
      this.#pending.delete(address.text);
      if (result instanceof VringError) reject(result);
      else resolve(result);
    };
    const ask = (): void => {
      if (attempts++ < this.#options.attempts) return this.#options.solicit(address);
      const what = address.family === 4 ? 'ARP requests' : 'neighbour solicitations';
      settle(
        new VringError(
          'ERR_VRING_GUEST_UNREACHABLE',
          `${address.text} did not answer ${this.#options.attempts} ${what}`,
          { recovery: 'retry' },
        ),
      );
    };
    const timer = setInterval(ask, this.#options.retryMs);
    const resolution: Resolution = { promise, settle };
    this.#pending.set(address.text, resolution);
    ask();
    return resolution;
  }
}
