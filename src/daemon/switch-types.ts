/** The vocabulary of the switch's control plane: what configuration, API and CLI speak. */
import type { PortPolicy } from '../devices/net/index.ts';
import type { DiskConfig } from './disks/disk-types.ts';
import type { AdapterConfig } from './disks/scsi-types.ts';

export type VlanConfig =
  | { readonly mode: 'access'; readonly vid: number }
  | {
      readonly mode: 'trunk';
      readonly allowed: readonly number[] | 'all';
      readonly native: number | null;
    };

export type OffloadConfig = {
  readonly csum: boolean;
  readonly tso: boolean;
  readonly uso: boolean;
};

type PortCommon = {
  readonly name: string;
  readonly vlan: VlanConfig;
  readonly offload: OffloadConfig;
  /** Bytes of IP that fit one frame; 68 .. 65535. */
  readonly mtu: number;
  /** Every frame goes back to where it came from: for measuring one port alone. */
  readonly reflect: boolean;
  /** Most MAC addresses learned from this port. */
  readonly macLimit: number;
  /** What the port is tuned for; absent: what the switch says. */
  readonly policy?: PortPolicy;
};

export type VhostUserPortConfig = PortCommon & {
  readonly kind: 'vhost-user';
  readonly path: string;
  /** `server` listens on `path`; `client` connects to it and reconnects. */
  readonly mode: 'server' | 'client';
  readonly socketOwner: { readonly uid: number; readonly gid: number } | null;
  /** File mode of the socket, server mode only, e.g. 0o660. */
  readonly socketMode: number | null;
  readonly queuePairs: number;
  /** Offered to the guest; null for none. */
  readonly mac: string | null;
  readonly packed: boolean;
  readonly mrgRxbuf: boolean;
  /** Offer ACCESS_PLATFORM: for guests behind a virtual IOMMU. */
  readonly iommu: boolean;
  /** Offer PAGEFAULT: the VMM may hold the worker up until it has brought a page. */
  readonly postcopy: boolean;
};

export type TapPortConfig = PortCommon & {
  readonly kind: 'tap';
  readonly interface: string;
  readonly queues: number;
};

/** An interface that is there, beside the host's own stack: AF_PACKET. */
export type PacketPortConfig = PortCommon & {
  readonly kind: 'packet';
  readonly interface: string;
  /** Sockets that share what arrives. */
  readonly queues: number;
  /** Past the interface's queueing discipline. */
  readonly qdiscBypass: boolean;
};

/** An interface that is there, instead of the host's own stack: AF_XDP. */
export type XdpPortConfig = PortCommon & {
  readonly kind: 'xdp';
  readonly interface: string;
  /** Queues of the interface, from 0 on; null for all. */
  readonly queues: number | null;
  readonly copyMode: 'auto' | 'copy' | 'zero-copy';
  readonly attach: 'auto' | 'native' | 'generic';
};

export type VdusePortConfig = PortCommon & {
  readonly kind: 'vduse';
  /** In /dev/vduse and on the vDPA bus. */
  readonly device: string;
  readonly mac: string | null;
  readonly packed: boolean;
  readonly mrgRxbuf: boolean;
  /** Who drives it: the host's kernel, a process by /dev/vhost-vdpa-N, or nobody yet. */
  readonly bind: 'virtio' | 'vhost' | 'none';
  /** The device stays when the port goes, for a successor. */
  readonly keep: boolean;
};

export type UplinkPortConfig = PacketPortConfig | XdpPortConfig;

export type PortConfig =
  | VhostUserPortConfig
  | TapPortConfig
  | PacketPortConfig
  | XdpPortConfig
  | VdusePortConfig;

export type SwitchConfig = {
  readonly ports: readonly PortConfig[];
  readonly disks?: readonly DiskConfig[];
  readonly scsi?: readonly AdapterConfig[];
  /** Where disks that the API added are remembered; null: beside the control socket. */
  readonly stateFile?: string | null;
  readonly control: {
    readonly path: string;
    readonly mode: number | null;
    readonly owner: { readonly uid: number; readonly gid: number } | null;
  };
  /** Also serve the API and /metrics here, e.g. `127.0.0.1:9100`; null for the socket only. */
  readonly http: string | null;
  readonly mac: { readonly ageingSeconds: number; readonly limit: number };
  /** How long a worker polls an empty queue before it sleeps. */
  readonly spinMicroseconds: number;
  /** Of ports that say nothing; absent: `balanced`. */
  readonly policy?: PortPolicy;
  /** Threads of the data plane; default: one. */
  readonly workers?: number;
  /** The core of each worker; default: all run anywhere. */
  readonly workerCores?: readonly number[] | null | undefined;
};

export type PortState =
  | 'listening' //   server mode, nobody is connected
  | 'connecting' //  client mode, the peer does not answer yet
  | 'negotiating' // connected, rings not running
  | 'up' //          at least one pair of rings runs
  | 'broken' //      a queue is broken until the driver resets it
  | 'down'; //       link set down, or the uplink is gone

export type QueueStatus = {
  readonly index: number;
  readonly name: string; //   receiveq1, transmitq1, ... as virtio names them
  readonly size: number;
  readonly enabled: boolean;
  readonly started: boolean;
  /** Name of the fault that broke it, or null. */
  readonly fault: string | null;
  readonly counters: Readonly<Record<string, number>>;
};

/** What of the vhost-user protocol the present session uses. */
export type SessionStatus = {
  /** Messages handled, and how many of them were refused. */
  readonly messages: number;
  readonly refusals: number;
  /** Dirty log of a migration: null, the front-end shares none. */
  readonly log: { readonly bytes: number; readonly active: boolean } | null;
  /** Null unless the driver is behind an IOMMU. */
  readonly iotlb: {
    readonly entries: number;
    readonly misses: number;
    readonly updates: number;
    readonly invalidations: number;
  } | null;
  /** Requests to the front-end so far; null without a backend channel. */
  readonly channel: { readonly requests: number } | null;
  readonly postcopy: 'none' | 'advised' | 'listening';
};

export type PortStatus = {
  readonly name: string;
  readonly kind: PortConfig['kind'];
  readonly endpoint: string;
  readonly state: PortState;
  /** Why the port is not up, or why its last session ended: `{code, message, at}`. */
  readonly reason: { readonly code: string; readonly message: string; readonly at: string } | null;
  readonly linkUp: boolean;
  readonly sessions: number;
  readonly vlan: VlanConfig;
  readonly mtu: number;
  readonly policy: PortPolicy;
  readonly features: { readonly bits: string; readonly names: readonly string[] } | null;
  readonly protocolFeatures: { readonly bits: string; readonly names: readonly string[] } | null;
  readonly memory: { readonly regions: number; readonly bytes: number } | null;
  readonly session: SessionStatus | null;
  readonly queues: readonly QueueStatus[];
  /** rxFrames, rxBytes, txFrames, txBytes and drops by reason; rx is what the port sent us. */
  readonly counters: Readonly<Record<string, number>>;
};

export type MacEntry = {
  readonly mac: string;
  readonly vlan: number;
  readonly port: string;
  readonly ageSeconds: number;
};

export type WorkerStatus = {
  readonly id: number;
  readonly polls: number;
  readonly sleeps: number;
  readonly wakeups: number;
  readonly cpuSeconds: number;
  /** The one that it runs on; null: any. */
  readonly core: number | null;
  /** Queues that came from other workers, and those that it could not take. */
  readonly queuesTaken: number;
  readonly queuesRefused: number;
  /** Rings that it alone takes from, and what it took in the last second (0 with one worker). */
  readonly queues: readonly {
    readonly port: string;
    readonly index: number;
    readonly chainsPerSecond: number;
  }[];
};

export type SwitchEvent = {
  readonly at: string;
  readonly kind: string;
  readonly port: string | null;
  /** What it is about, where that is a disk. */
  readonly disk?: string | undefined;
  readonly message: string;
};
