/** Everything of a back-end session but its socket and its loop: what messages act upon. */
import type { Fd } from '../sys/index.ts';
import {
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
} from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import { type ChannelContext, ChannelRequests } from './channel-requests.ts';
import { DeviceState } from './device-state.ts';
import { InbandNotifier } from './inband.ts';
import { IotlbControl } from './iotlb-control.ts';
import { MemoryControl } from './memory-control.ts';
import { offeredFeatures, offeredProtocolFeatures } from './offered-features.ts';
import { postcopyAvailable, PostcopyControl, type PostcopyState } from './postcopy-control.ts';
import type { ProtocolState, VringSetup } from './state-rules.ts';
import type { BackendTarget } from './target.ts';
import { VringControl } from './vring-control.ts';

export class SessionContext implements ProtocolState {
  readonly target: BackendTarget;
  /** What GET_FEATURES and GET_PROTOCOL_FEATURES answer. */
  readonly offeredFeatures: bigint;
  readonly offeredProtocolFeatures: bigint;
  readonly vrings: VringControl;
  readonly memory: MemoryControl;
  readonly iotlb: IotlbControl;
  readonly requests: ChannelRequests;
  readonly inband: InbandNotifier;
  readonly postcopyControl = new PostcopyControl();
  readonly deviceState: DeviceState;
  /** As the front-end sent it, bit 30 included; null before. */
  features: bigint | null = null;
  #protocolFeatures: bigint | null = null;
  owned = false;
  mtu: number | null = null;
  /** SET_LOG_FD. */
  logFd: Fd | null = null;

  /** `makeRequests`: how the target reaches the front-end where there is no backend channel. */
  constructor(
    target: BackendTarget,
    makeRequests = (context: ChannelContext) => new ChannelRequests(context),
  ) {
    this.target = target;
    this.offeredProtocolFeatures = offeredProtocolFeatures(target, postcopyAvailable());
    this.offeredFeatures = offeredFeatures(target, this.offeredProtocolFeatures);
    this.requests = makeRequests(this);
    this.iotlb = new IotlbControl((iova, permissions) => this.requests.sendMiss(iova, permissions));
    this.inband = new InbandNotifier((which, index) => {
      // A suspended device notifies nobody; what a ring said last is of no use to who stopped it.
      if (this.vrings.isRunning(index)) this.requests.signal(which, index);
    });
    this.vrings = new VringControl(target, this.iotlb, this.inband);
    this.vrings.onStarted = () => this.requests.woken();
    this.iotlb.onRetry = () => this.vrings.missAgain();
    // What fails here fails the session through the worker that ended.
    this.iotlb.onKnown = (entry) => void target.updateIotlb?.(entry).catch(() => undefined);
    this.iotlb.onForgotten = (page, sizeBytes) => {
      void target.invalidateIotlb?.(page, sizeBytes).catch(() => undefined);
    };
    this.deviceState = new DeviceState(target);
    const { vrings, iotlb, postcopyControl: postcopy } = this;
    this.memory = new MemoryControl({ target, vrings, iotlb, postcopy });
  }

  get protocolFeatures(): bigint | null {
    return this.#protocolFeatures;
  }

  setProtocolFeatures(acked: bigint): void {
    this.#protocolFeatures = acked;
    this.inband.negotiated = hasFeature(acked, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    this.vrings.around.gpaAddresses = hasFeature(acked, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
  }

  isRunning(index: number): boolean {
    return this.vrings.isRunning(index);
  }

  vringSetup(index: number): VringSetup | null {
    return this.vrings.setup(index);
  }

  get runningVrings(): number {
    return this.vrings.runningCount;
  }

  get postcopy(): PostcopyState {
    return this.postcopyControl.state;
  }

  get stateTransfer(): boolean {
    return this.deviceState.begun;
  }

  /** The session is ending: nobody is to wait for anything any more. */
  disconnect(): void {
    this.requests.close();
    this.iotlb.close();
    this.deviceState.close();
    // Whoever sleeps in a page fault must wake, or the target could not let go of the memory.
    this.postcopyControl.end();
  }

  /** The target has let go of everything. */
  close(): void {
    const { around } = this.vrings;
    this.vrings.close();
    this.memory.close();
    around.log?.close();
    around.log = null;
    around.inflight?.close();
    around.inflight = null;
    this.logFd?.close();
    this.logFd = null;
  }
}
