/**
 * The states of one vring, and every way from one to another. Two of them, which know nothing of
 * each other (specification, "Ring states"): it runs or not, and it is enabled or not. A ring
 * that runs and is disabled belongs to the target all the same: what a disabled ring does is the
 * device's affair (net drops, others wait).
 */
import { assert } from '../base/assert.ts';

export type RunState =
  | 'stopped' //  the target does not have it
  | 'waiting' //  complete, but translations of its areas are missing or memory is not there yet
  | 'started'; // the target has it

export type RunEvent =
  | 'start' //      it is complete: size, addresses, kick message, features, memory
  | 'wait' //       it is complete but for what somebody else must bring
  | 'halt' //       its configuration, memory or log changes; the base is kept
  | 'get-base'; //  GET_VRING_BASE, RESET_DEVICE: the next start needs a new kick message

export type RunTransition = {
  readonly from: RunState;
  readonly event: RunEvent;
  readonly to: RunState;
  readonly says: string;
};

/** Everything that may happen; what is not here cannot. */
export const RUN_TRANSITIONS: readonly RunTransition[] = [
  { from: 'stopped', event: 'start', to: 'started', says: 'whatever message completed the ring' },
  { from: 'stopped', event: 'wait', to: 'waiting', says: 'an IOTLB miss, or postcopy not acked' },
  { from: 'stopped', event: 'halt', to: 'stopped', says: 'a change of a ring at rest' },
  { from: 'stopped', event: 'get-base', to: 'stopped', says: 'the same answer as before' },
  { from: 'waiting', event: 'start', to: 'started', says: 'what was missing has come' },
  { from: 'waiting', event: 'wait', to: 'waiting', says: 'part of it has come' },
  { from: 'waiting', event: 'halt', to: 'stopped', says: 'looked at again after the change' },
  { from: 'waiting', event: 'get-base', to: 'stopped', says: 'the base is where it was' },
  { from: 'started', event: 'halt', to: 'stopped', says: 'the target says where it stood' },
  { from: 'started', event: 'get-base', to: 'stopped', says: 'the target says where it stood' },
];

/** Enable and disable are legal in every state, before SET_FEATURES too. */
export const ENABLE_TRANSITIONS = [
  { event: 'SET_VRING_ENABLE 1', to: 'enabled' },
  { event: 'SET_FEATURES without bit 30', to: 'enabled' },
  { event: 'SET_VRING_ENABLE 0', to: 'disabled' },
  { event: 'RESET_OWNER', to: 'disabled' },
  { event: 'RESET_DEVICE', to: 'disabled' },
] as const;

/** The state after an event. One that the table does not have is a mistake of ours. */
export function nextRunState(from: RunState, event: RunEvent): RunState {
  const found = RUN_TRANSITIONS.find((each) => each.from === from && each.event === event);
  assert(found !== undefined, () => `a ${from} vring cannot ${event}`);
  return found!.to;
}
