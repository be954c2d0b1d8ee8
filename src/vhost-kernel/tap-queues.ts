/** The TAP that a vhost-net device has behind it: one fd per queue pair. */
import { VringError } from '../base/errors.ts';
import {
  Fd,
  openTap,
  setInterfaceUp,
  setTapHeader,
  setTapOffloads,
  tapState,
} from '../sys/index.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
} from '../wire/virtio-net.ts';
import { featureSet, hasFeature } from '../wire/virtio.ts';

/** What every TAP does with frames that are not finished, in both directions. */
const OFFLOADS = featureSet(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_ECN,
);
/** Linux 6.2. */
const USO = featureSet(VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6);
const NONE = { csum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso: false };

export class TapQueues {
  readonly name: string;
  readonly fds: readonly Fd[];
  /** VIRTIO_NET_F_*: what frames to and from this TAP may leave undone. */
  readonly offloads: bigint;

  /**
   * Opens `pairs` queues of an interface, which is made if it is not there, or takes queues over
   * that are open, of one interface.
   * @throws VringError ERR_VRING_INTERFACE, _INTERFACE_BUSY, _INTERFACE_PERMISSION,
   *   ERR_VRING_DEVICE_MISSING.
   */
  static open(tap: string | readonly Fd[], pairs: number, up: boolean): TapQueues {
    const fds: Fd[] = [];
    try {
      const name = typeof tap === 'string' ? openAll(tap, pairs, fds) : takeAll(tap, pairs, fds);
      if (up) setInterfaceUp(name, true);
      return new TapQueues(name, fds);
    } catch (error) {
      for (const fd of fds) fd.close();
      throw error;
    }
  }

  private constructor(name: string, fds: readonly Fd[]) {
    this.name = name;
    this.fds = fds;
    const probed = setTapOffloads(fds[0].number, { ...NONE, csum: true, uso: true });
    this.offloads = probed.uso ? OFFLOADS | USO : OFFLOADS;
    setTapOffloads(fds[0].number, NONE);
  }

  /** What the guest's driver takes unfinished: the acked GUEST_* bits, for all queues. */
  accept(features: bigint): void {
    const has = (bit: number): boolean => hasFeature(features, bit);
    setTapOffloads(this.fds[0].number, {
      csum: has(VIRTIO_NET_F_GUEST_CSUM),
      tso4: has(VIRTIO_NET_F_GUEST_TSO4),
      tso6: has(VIRTIO_NET_F_GUEST_TSO6),
      ecn: has(VIRTIO_NET_F_GUEST_ECN),
      ufo: false,
      uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    });
  }

  /** False once somebody deleted the interface; its fds are then of no use any more. */
  get alive(): boolean {
    return tapState(this.fds[0].number) !== null;
  }

  /** Idempotent. */
  close(): void {
    for (const fd of this.fds) fd.close();
  }
}

function openAll(name: string, pairs: number, fds: Fd[]): string {
  const first = openOne(name, pairs > 1);
  fds.push(first.fd);
  for (let i = 1; i < pairs; i++) fds.push(openOne(first.name, true).fd);
  return first.name;
}

function openOne(name: string, multiQueue: boolean): { fd: Fd; name: string } {
  try {
    return openTap(name, { vnetHdrBytes: 12, multiQueue });
  } catch (thrown) {
    if (!isMisfit(thrown) || multiQueue) throw thrown;
    // tun_set_iff: an interface is of one queue or of several from its first day.
    try {
      return openTap(name, { vnetHdrBytes: 12, multiQueue: true });
    } catch (again) {
      throw isMisfit(again) ? thrown : again; // it is neither, and one was asked for
    }
  }
}

function isMisfit(thrown: unknown): boolean {
  return thrown instanceof VringError && thrown.code === 'ERR_VRING_INTERFACE';
}

function takeAll(given: readonly Fd[], pairs: number, fds: Fd[]): string {
  fds.push(...given);
  if (given.length !== pairs) {
    const text = `${given.length} TAP fds for ${pairs} queue pairs: there must be one for each`;
    throw new VringError('ERR_VRING_INTERFACE', text);
  }
  const states = given.map(({ number }) => tapState(number));
  const name = states[0]?.name ?? '';
  for (const state of states) {
    if (state === null || !state.vnetHdr || state.name !== name) {
      const text =
        `a TAP fd (${state?.name ?? 'its interface is gone'}) cannot serve: ` +
        `all must be queues of one interface, opened with IFF_VNET_HDR`;
      throw new VringError('ERR_VRING_INTERFACE', text);
    }
  }
  for (const { number } of given) setTapHeader(number, 12);
  return name;
}
