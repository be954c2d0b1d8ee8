/** What the control plane asks of a net plane, and what it answers: `NetPlane.command`. */
import type { PacketPlaneOptions, TapPlaneOptions, XdpPlaneOptions } from '../../uplinks/index.ts';
import type { PortSettings } from '../../switch/index.ts';
import type { NetPlaneState } from './net-state.ts';
import type { PortPolicy } from './port-policy.ts';

/** `options` of the worker that runs this plane; the memory stays the control plane's. */
export type NetPlaneOptions = {
  readonly macTable: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  /** Arena offset of SWITCH_SCRATCH_BYTES of private memory. */
  readonly scratchAt: number;
  /** This worker's number, and how many there are; default: the only one. */
  readonly worker?: number;
  readonly workers?: number;
  /** What each source brought, doubles: by `loadSlot` of a vring, others by the worker's number. */
  readonly loads?: SharedArrayBuffer;
};

/** What of a port can change while it runs. */
export type NetPortSettings = PortSettings & { readonly policy?: PortPolicy };

export type AddNetPort = {
  readonly port: number;
  readonly settings: NetPortSettings;
  readonly queuePairs: number;
  readonly mtu: number;
  readonly mac: Uint8Array | null;
  readonly linkUp: boolean;
  /** See NetPortOptions. */
  readonly parkedAt?: number;
};
export type AddTapPort = TapPlaneOptions & {
  readonly port: number;
  /** Another worker receives from it. */
  readonly transmitOnly?: boolean;
  readonly settings: NetPortSettings;
};
/** A port of an interface that is there already. */
export type AddUplinkPort = {
  readonly port: number;
  readonly settings: NetPortSettings;
  readonly uplink:
    | (PacketPlaneOptions & { readonly kind: 'packet' })
    | (XdpPlaneOptions & { readonly kind: 'xdp' });
};
/** Its sockets, which come and go with the interface. */
export type AttachUplink = {
  readonly port: number;
  readonly queues: PacketPlaneOptions['queues'] | XdpPlaneOptions['queues'];
};
export type LoadNetState = {
  readonly port: number;
  readonly state: NetPlaneState;
  readonly switchCounters: Readonly<Record<string, number>>;
};
export type LoadUplinkCounters = {
  readonly port: number;
  readonly counters: Readonly<Record<string, number>>;
  readonly switchCounters: Readonly<Record<string, number>>;
};
export type NetPortStatus = {
  readonly counters: Record<string, number>;
  readonly vrings: { index: number; started: boolean; counters: Record<string, number> }[];
};
