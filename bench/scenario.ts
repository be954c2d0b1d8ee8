/** What is measured: frame size, ring format, and whether one port or two are used. */
import type { Placement } from './placement.ts';

export type Topology =
  | 'loop' // one port; every frame comes back to where it came from
  | 'pair'; // two ports; frames of one go to the other, both directions at once

export type Scenario = {
  readonly topology: Topology;
  readonly ring: 'split' | 'packed';
  /** Ethernet frame without checksum, as testpmd counts it. */
  readonly frameBytes: number;
};

export function allScenarios(): Scenario[] {
  const scenarios: Scenario[] = [];
  for (const topology of ['loop', 'pair'] as const) {
    for (const ring of ['split', 'packed'] as const) {
      for (const frameBytes of [64, 1500]) scenarios.push({ topology, ring, frameBytes });
    }
  }
  return scenarios;
}

export function scenarioName({ topology, ring, frameBytes }: Scenario): string {
  return `${topology} ${ring} ${frameBytes} B`;
}

/**
 * How the two cores are used. The client forwards on one, the back-end works on the other; the
 * prompts and control threads share the back-end's core but sleep while a run is measured.
 */
export const CLIENT_CORE = 1;
export const BACKEND_CORE = 0;

/** Addresses of the client's two ports: each sends to the other. */
export const CLIENT_MACS = ['52:54:00:be:0c:01', '52:54:00:be:0c:02'] as const;

/** One measured run of one back-end. */
export type Run = {
  readonly backend: string;
  /** Frames per second that the client received: of its port, or each way as the mean of two. */
  readonly pps: number;
  /** Of both ports where there are two. */
  readonly ppsPerPort: readonly number[];
  /** Nanoseconds that the back-end's own loop spent per frame, by its own counters. */
  readonly backendNsPerFrame: number | null;
  /** Nanoseconds that the client spent per frame, from its core cycles. */
  readonly clientNsPerFrame: number | null;
  /** Largest share of the time that a polling thread waited for its core. */
  readonly waitingShare: number;
  /** A cache line from the one core to the other and back, before the run and after it. */
  readonly coreToCoreNs: readonly [number, number];
  /** What that says; null: it was another place afterwards. */
  readonly placement: Placement | null;
  /** Why a run does not count, or null. */
  readonly problem: string | null;
};
