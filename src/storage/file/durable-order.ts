/**
 * When may a flush that succeeded be called a success? Linux tells a write-back error to one caller
 * per open file: of two flushes that overlap, the one that is answered second may have taken the
 * error of what the first was asked about (lib/errseq.c, errseq_check_and_advance). So a success
 * is held until every flush, and every write that is to be durable, has been answered that was
 * under way when it was.
 *
 * Those under way belong to one of two epochs. What is held waits for the older epoch to be empty;
 * a new one begins with each group that waits, so that nobody waits for who came later.
 */
export class DurableOrder {
  readonly #epochOf: Uint8Array;
  readonly #underWay = [0, 0];
  #epoch = 0;
  /** Slots that wait for the older epoch, and those that will wait for the present one. */
  #waiting: number[] = [];
  #next: number[] = [];

  constructor(slots: number) {
    this.#epochOf = new Uint8Array(slots);
  }

  begin(slot: number): void {
    this.#epochOf[slot] = this.#epoch;
    this.#underWay[this.#epoch]!++;
  }

  /** It was answered. `hold`: its success is to wait for `release`. */
  end(slot: number, hold: boolean): void {
    this.#underWay[this.#epochOf[slot]!]!--;
    if (hold) this.#next.push(slot);
  }

  /** Hands out what has waited for long enough. */
  release(finish: (slot: number) => void): void {
    for (;;) {
      if (this.#waiting.length === 0) {
        if (this.#next.length === 0) return;
        [this.#waiting, this.#next] = [this.#next, this.#waiting];
        this.#epoch ^= 1;
      }
      if (this.#underWay[this.#epoch ^ 1]! > 0) return;
      for (const slot of this.#waiting) finish(slot);
      this.#waiting.length = 0;
    }
  }
}
