/** What a guest may be told when it starts, and what it tells. */
import type { ReconnectOptions } from './attach.ts';
import type { FeatureChoice } from './features.ts';
import type { AddressSpace } from './iommu.ts';

export type NetGuestOptions = {
  readonly queuePairs?: number;
  /** Descriptors of each data ring; default 256. */
  readonly ringSize?: number;
  readonly packed?: boolean;
  readonly features?: FeatureChoice;
  /** Default: the device's, or one made up. */
  readonly mac?: string | null;
  /** Bytes of IP in a frame. Default: what the device says, or 1500. */
  readonly mtu?: number | null;
  readonly hugePages?: boolean;
  readonly notify?: 'interrupt' | 'poll' | 'manual';
  /**
   * Longest frame that is sent, header excluded. Default: one MTU, or 64 KiB where the back-end
   * segments.
   */
  readonly maxTxFrameBytes?: number;
  /** Test knob: the virtio-net header in a descriptor of its own. */
  readonly headerApart?: boolean;
};

/** How the guest stands to its back-ends, beyond the first one. */
export type NetGuestLink = {
  /** How addresses are made for the device; with an IOMMU, ACCESS_PLATFORM is demanded. */
  readonly addressSpace?: AddressSpace;
  /** Survives a back-end that goes away. Without it, that is the end of the guest. */
  readonly reconnect?: ReconnectOptions;
};

/** The back-end went away, or the rings go on with another one. */
export type LinkEvent =
  | { readonly kind: 'lost'; readonly reason: Error | null }
  | { readonly kind: 'restored'; readonly milliseconds: number };
