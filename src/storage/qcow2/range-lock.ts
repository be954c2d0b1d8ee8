/**
 * Locks of ranges: many readers or one writer of each place, in the order in which they came, so
 * that nobody starves. Requests under way are few (a storage thread has 256), so lists will do.
 */
import { assert } from '../../base/assert.ts';

type Hold = {
  readonly first: number;
  readonly last: number;
  readonly isExclusive: boolean;
  /** Null: it has the range. */
  grant: (() => void) | null;
};

export class RangeLock {
  readonly #holds: Hold[] = [];

  /** Resolves to what gives [first, last] back. */
  async acquire(first: number, last: number, isExclusive: boolean): Promise<() => void> {
    const hold: Hold = { first, last, isExclusive, grant: null };
    const mustWait = this.#holds.some((other) => conflict(hold, other));
    this.#holds.push(hold);
    if (mustWait) await new Promise<void>((resolve) => (hold.grant = resolve));
    return () => this.#release(hold);
  }

  #release(hold: Hold): void {
    const index = this.#holds.indexOf(hold);
    assert(index >= 0, 'a range is given back once');
    this.#holds.splice(index, 1);
    for (const [i, waiter] of this.#holds.entries()) {
      if (waiter.grant === null || !conflict(hold, waiter)) continue;
      if (this.#holds.slice(0, i).some((other) => conflict(waiter, other))) continue;
      const { grant } = waiter;
      waiter.grant = null;
      grant();
    }
  }
}

function conflict(a: Hold, b: Hold): boolean {
  return (a.isExclusive || b.isExclusive) && a.first <= b.last && b.first <= a.last;
}
