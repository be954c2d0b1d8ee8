import { setTimeout as sleep } from 'node:timers/promises';
import { countsOf, type DiskCounts, NO_COUNTS, type PlaneCounts, sumOf } from './disk-counts.ts';

/** A worker that hangs in its medium answers late; others must not wait for it. */
const PATIENCE_MS = 500;

/** A unit, or the host adapter of many. */
export type Metered = {
  /** False: there is nobody to ask. */
  readonly isCounting: boolean;
  counts(): Promise<PlaneCounts>;
  /** Of its layers. */
  layers(): Promise<Record<string, number>>;
};

/** What a disk counts, whichever data plane serves it. */
export class DiskMeter {
  /** Of the layers, which count anew whenever they are opened. */
  layers: Record<string, number> = {};
  /** Counted before the image was opened this time. */
  #before: DiskCounts = NO_COUNTS;
  #last: DiskCounts = NO_COUNTS;
  #settled = 0;

  get counts(): DiskCounts {
    return sumOf(this.#before, this.#last);
  }

  /** With what a predecessor has counted. */
  beginWith(counts: DiskCounts): void {
    this.#before = counts;
  }

  /** Asks data plane and layers; of those that hang we know what they last said. */
  async read(metered: Metered | null): Promise<void> {
    if (metered === null || !metered.isCounting) return;
    const settled = this.#settled;
    const asked = Promise.all([metered.counts(), metered.layers()]);
    const patience = sleep(PATIENCE_MS, null, { ref: false });
    const answer = await Promise.race([asked, patience]).catch(() => null);
    if (answer === null || settled !== this.#settled) return;
    this.#last = countsOf(answer[0]);
    this.layers = answer[1];
  }

  /** The data plane is about to forget. */
  settle(): void {
    this.#before = { ...this.counts, inFlight: 0 };
    this.#last = NO_COUNTS;
    this.#settled++;
  }
}
