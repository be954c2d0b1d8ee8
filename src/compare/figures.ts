/** What is measured of a path, in the units that are printed. */

/** One frame size: frames that went through the path, came back, and were found right. */
export type LoopFigures = {
  readonly sizeBytes: number;
  readonly seconds: number;
  readonly sent: number;
  readonly returned: number;
  readonly lost: number;
  readonly corrupt: number;
  /** Frames per second, each there and back. */
  readonly framesPerSecond: number;
  /** Per frame there and back. */
  readonly guestCpuNs: number;
  /** Null where the guest's process does the device's work: it is in `guestCpuNs`. */
  readonly deviceCpuNs: number | null;
  readonly wakeupsPerFrame: number;
  /** Null where the kernel does not let them be counted. */
  readonly systemCallsPerFrame: number | null;
};

/** One frame at a time, from its sending to its return; both sides sleep in between. */
export type RoundTripFigures = {
  readonly trips: number;
  readonly minUs: number;
  readonly medianUs: number;
  readonly p99Us: number;
};

/** One round of the workload over one path. */
export type Figures = {
  readonly loops: readonly LoopFigures[];
  readonly roundTrip: RoundTripFigures;
};

/** Median, least and most of the rounds. */
export type Spread = { readonly median: number; readonly min: number; readonly max: number };

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  return { median: percentile(sorted, 0.5), min: sorted[0]!, max: sorted.at(-1)! };
}

/** Of sorted values; between two of them their mean, weighted. */
export function percentile(sorted: readonly number[], share: number): number {
  const at = share * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at - Math.floor(at));
}
