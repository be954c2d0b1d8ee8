/** When a disk that could not be opened is tried again, and what is said about it. */
import { reasonOf } from '../switch-port.ts';
import type { DiskReason } from './disk-types.ts';

/** Each time it waits twice as long, up to the last one. */
const FIRST_RETRY_MS = 1_000;
const LAST_RETRY_MS = 30_000;

export type FailureWords = {
  readonly failed: string;
  readonly works: string;
  /** Whoever does not want to wait. */
  readonly remedy: string;
};

const OF_DISKS: FailureWords = {
  failed: 'disk-failed',
  works: 'disk-recovered',
  remedy: ', or by vring disks reopen',
};

export class DiskFailures {
  /** Why the disk does not work, or why its last session ended. */
  reason: DiskReason | null = null;
  readonly #retry: () => void;
  readonly #report: (kind: string, message: string) => void;
  readonly #words: FailureWords;
  #delayMs = FIRST_RETRY_MS;
  #timer: NodeJS.Timeout | null = null;
  #told: string | null = null;

  constructor(
    retry: () => void,
    report: (kind: string, message: string) => void,
    words: FailureWords = OF_DISKS,
  ) {
    this.#retry = retry;
    this.#report = report;
    this.#words = words;
  }

  /** The disk does not work: says so once for each cause, and tries again later. */
  failed(error: Error): void {
    this.reason = reasonOf(error);
    if (this.#told !== error.message) {
      const text = `${error.message}; it is tried again by itself${this.#words.remedy}`;
      this.#report(this.#words.failed, text);
    }
    this.#told = error.message;
    this.stop();
    this.#timer = setTimeout(this.#retry, this.#delayMs);
    this.#delayMs = Math.min(2 * this.#delayMs, LAST_RETRY_MS);
  }

  works(): void {
    this.stop();
    if (this.#told !== null) this.#report(this.#words.works, 'works again');
    this.#told = null;
    this.reason = null;
    this.#delayMs = FIRST_RETRY_MS;
  }

  /** Idempotent. */
  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
