/**
 * The device state of a vhost-user port: put together from what the worker, the device and the
 * switch keep of it, and taken apart again. See docs/device-state.md.
 */
import {
  checkNetState,
  encodeNetState,
  type LoadNetState,
  type NetDevice,
  type NetPlaneState,
  type NetState,
  parseNetState,
} from '../devices/net/index.ts';
import type { DeviceHost, StateKeeper } from '../runtime/index.ts';
import { macWords } from '../switch/index.ts';
import { formatMac, parseMac } from '../wire/ethernet.ts';
import type { PortContext } from './switch-port.ts';
import type { VhostUserPortConfig, VlanConfig } from './switch-types.ts';

/** Learned addresses per request, so that no request holds the worker for long: about 0.5 ms. */
const MACS_PER_REQUEST = 4096;

/** What of a port a state is about. */
export type StatefulPort = {
  readonly config: VhostUserPortConfig;
  readonly context: PortContext;
  readonly device: NetDevice;
  readonly host: () => DeviceHost;
  readonly mtu: () => number;
  readonly offeredMtu: () => number;
  readonly setMtu: (mtu: number) => void;
  readonly linkUp: () => boolean;
  /** The state was taken over; `linkUp` is what the driver believes. */
  loaded(linkUp: boolean): void;
};

export function keepState(port: StatefulPort): StateKeeper {
  return {
    save: async () => encodeNetState(await saveNetState(port)),
    load: async (bytes) => {
      const state = parseNetState(bytes);
      const { queuePairs } = port.config;
      const mtu = port.offeredMtu();
      checkNetState(state, { features: port.device.features, queuePairs, mtu });
      await loadNetState(port, state);
      await learnAll(port.context, learnable(state, port));
      port.loaded(state.linkUp);
    },
  };
}

/** Learned addresses are of the switch: without them where the whole table goes along. */
export async function saveNetState(port: StatefulPort, withMacs = true): Promise<NetState> {
  const { worker, number } = port.context;
  const plane = await worker.request<NetPlaneState>('saveState', { port: number });
  const { address } = port.device;
  return {
    ...plane,
    features: port.host().acked,
    mtu: port.mtu(),
    linkUp: port.linkUp(),
    mac: address && formatMac(address),
    macs: withMacs
      ? port.context.learned().map(({ mac, vlan, ageSeconds }) => [mac, vlan, ageSeconds])
      : [],
    switchCounters: port.context.switchCounters(),
  };
}

/** Everything but the learned addresses. The state was checked. */
export async function loadNetState(port: StatefulPort, state: NetState): Promise<void> {
  const { worker, number } = port.context;
  const { filter, activePairs, counters, switchCounters } = state;
  const load: LoadNetState = {
    port: number,
    state: { filter, activePairs, counters },
    switchCounters,
  };
  await worker.request('loadState', load);
  port.device.address = state.mac === null ? null : parseMac(state.mac);
  if (state.mtu !== port.mtu()) port.setMtu(state.mtu);
}

/** The words of the addresses that this port may have: those of VLANs that it is in. */
function learnable(state: NetState, { context }: StatefulPort): number[] {
  const vlan = context.vlan();
  return state.macs
    .filter(([, vid]) => isMember(vlan, vid))
    .flatMap(([mac, vid, age]) => macWords(mac, vid, context.number, age));
}

async function learnAll(context: PortContext, words: readonly number[]): Promise<void> {
  const step = 4 * MACS_PER_REQUEST;
  for (let at = 0; at < words.length; at += step) {
    await context.worker.request('learnMacs', Int32Array.from(words.slice(at, at + step)));
  }
}

function isMember(vlan: VlanConfig, vid: number): boolean {
  if (vlan.mode === 'access') return vlan.vid === vid;
  return vlan.allowed === 'all' || vlan.allowed.includes(vid);
}
