/**
 * Receive queues that one of `workers` writes: every `workers`-th, so that no two write the same
 * one where there are enough; else one each, which others may write, too.
 */
export function queuesOf<Queue>(
  usable: readonly Queue[],
  worker: number,
  workers: number,
): readonly Queue[] {
  const { length } = usable;
  if (length === 0 || workers === 1) return usable;
  if (length < workers) return [usable[worker % length]!];
  return usable.filter((_, at) => at % workers === worker);
}
