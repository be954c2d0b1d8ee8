/**
 * Which queue should another worker have? Pure: loads in, at most one move out.
 *
 * A move is worth it when it takes a fair part of the difference between the most and the least
 * loaded worker away from the former. Moving `q` from one to the other changes their difference `d`
 * to |d - 2q|, so with loads that stay as they are each move makes the sum of the squares of the
 * workers' loads smaller: moves end, and no queue goes back and forth.
 */
export type QueueLoad = {
  readonly member: number;
  /** Chains of the last period, a second. */
  readonly load: number;
};

export type QueueMove<Queue> = { readonly queue: Queue; readonly to: number };

/**
 * A worker that had fewer gains nothing by a move. Frames by which guests make themselves known
 * would put both queues of one of them together, for seconds, before it sends by both.
 */
const LEAST_LOAD = 100;
/** Part of the difference that a move must take from the most loaded worker. */
const FAIR_PART = 0.25;
/** Part of the highest load that a difference must be: what is less is noise. */
const NOISE_PART = 0.1;

/** `others`: load of each worker that no move can take from it. */
export function balance<Queue extends QueueLoad>(
  queues: readonly Queue[],
  others: readonly number[],
): QueueMove<Queue> | null {
  const totals = [...others];
  for (const { member, load } of queues) totals[member]! += load;
  const most = Math.max(...totals);
  const least = Math.min(...totals);
  const [from, to] = [totals.indexOf(most), totals.indexOf(least)];
  const difference = most - least;
  if (most < LEAST_LOAD || difference <= most * NOISE_PART) return null;
  let best: Queue | null = null;
  let bestGain = difference * FAIR_PART;
  for (const queue of queues) {
    const gain = Math.min(queue.load, difference - queue.load);
    if (queue.member !== from || gain <= bestGain) continue;
    best = queue;
    bestGain = gain;
  }
  return best === null ? null : { queue: best, to };
}
