/**
 * When loads are looked at: once a period while there are any. A period that brought nothing ends
 * the timer, so a group at rest wakes nobody; the word `quiet` then asks the workers for a word
 * when there is work again. They look at it when they have worked, before they sleep or else every
 * EVENT_CHECK_MS (worker.ts), so it costs no frame anything.
 *
 * Work that was done while the timer was about to end may be missed. What follows is not, and no
 * queue is to be moved for what has ended.
 */
export class BalanceTimer {
  /** For the workers, one word; not 0: the first one to have work sets it to 0 and says so. */
  readonly quiet = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
  readonly #periodMs: number;
  readonly #look: (periods: number) => boolean;
  #timer: NodeJS.Timeout | null = null;
  #lookedMs = performance.now();
  #isOver = false;

  /** `look` hears how many periods have passed, and says whether the last one brought anything. */
  constructor(periodMs: number, look: (periods: number) => boolean) {
    this.#periodMs = periodMs;
    this.#look = look;
    this.#rest();
  }

  /** There is work again. */
  begin(): void {
    if (this.#isOver || this.#timer !== null) return;
    this.#timer = setInterval(() => this.#tick(), this.#periodMs);
    this.#timer.unref();
  }

  /** For good. Idempotent. */
  close(): void {
    this.#isOver = true;
    Atomics.store(this.quiet, 0, 0);
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #tick(): void {
    const nowMs = performance.now();
    const periods = Math.max(1, Math.round((nowMs - this.#lookedMs) / this.#periodMs));
    this.#lookedMs = nowMs;
    if (!this.#look(periods)) this.#rest();
  }

  #rest(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
    Atomics.store(this.quiet, 0, 1);
  }
}
