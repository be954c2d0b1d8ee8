/** What a session shows of itself. */
import type { ProtocolError } from '../base/errors.ts';
import type { SessionContext } from './backend-context.ts';
import type { IotlbSnapshot } from './iotlb-control.ts';
import type { PostcopyState } from './postcopy-control.ts';
import { usesIotlb } from './ring-start.ts';
import type { VringSnapshot } from './vring-control.ts';

/** A session, as status displays see it. */
export type SessionState = {
  /** Acked, bit 30 included; null before SET_FEATURES. */
  readonly features: bigint | null;
  readonly protocolFeatures: bigint | null;
  readonly owned: boolean;
  readonly memory: { readonly regions: number; readonly bytes: number } | null;
  readonly mtu: number | null;
  /** The dirty log; null before SET_LOG_BASE. */
  readonly log: { readonly bytes: number; readonly active: boolean } | null;
  /** Null unless the driver is behind an IOMMU. */
  readonly iotlb: IotlbSnapshot | null;
  readonly inflight: { readonly queues: number; readonly queueSize: number } | null;
  /** The backend channel; null while there is none. */
  readonly channel: { readonly requests: number; readonly waiting: number } | null;
  readonly postcopy: PostcopyState;
  readonly vrings: readonly VringSnapshot[];
  /** Messages handled, and how many of them were refused without ending the session. */
  readonly messages: number;
  readonly refusals: number;
  readonly lastRefusal: ProtocolError | null;
};

type Counters = 'messages' | 'refusals' | 'lastRefusal';

export function stateOf(context: SessionContext): Omit<SessionState, Counters> {
  const { features, protocolFeatures, owned, mtu, memory, vrings, iotlb, postcopy } = context;
  const { log, logging, inflight } = vrings.around;
  const { channel } = context.requests;
  return {
    features,
    protocolFeatures,
    owned,
    mtu,
    memory: memory.snapshot(),
    log: log && { bytes: log.sizeBytes, active: logging },
    iotlb: usesIotlb(features) ? iotlb.snapshot() : null,
    inflight: inflight && {
      queues: inflight.shape.queueCount,
      queueSize: inflight.shape.queueSize,
    },
    channel: channel && { requests: channel.requests, waiting: channel.waiting },
    postcopy,
    vrings: vrings.snapshots(),
  };
}
