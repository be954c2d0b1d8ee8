/**
 * Who may use a unit: persistent reservations (SPC-4 5.12), and the older RESERVE and RELEASE
 * (SPC-2 5.5.1), which exclude each other.
 *
 * The device has one initiator, and so a unit has one nexus: whatever is reserved is reserved for
 * the only one who could ask, and nobody is ever kept from the medium. What remains is what a
 * driver or a cluster's software relies on: keys that must be known, types that must match, a
 * generation that counts, and what survives which reset.
 */
import * as scsi from '../../wire/scsi.ts';

/** What PERSISTENT RESERVE OUT asks for. */
export type ReserveRequest = {
  readonly action: number;
  readonly scope: number;
  readonly type: number;
  /** RESERVATION KEY: who asks. SERVICE ACTION RESERVATION KEY: about whom, or what is to be. */
  readonly key: bigint;
  readonly actionKey: bigint;
};

/** What becomes of it. `preempted`: commands of the nexus itself are to be aborted. */
export type ReserveOutcome =
  | 'good'
  | 'preempted'
  | 'conflict'
  | 'wrong scope or type'
  | 'wrong action key'
  | 'wrong release';

/** For who serves the unit next; the key in decimal digits. */
export type ReservationState = {
  readonly key: string;
  readonly generation: number;
  readonly type: number;
  readonly isReserved: boolean;
};

const LU_SCOPE = 0;

const TYPES = new Set([
  scsi.PR_WRITE_EXCLUSIVE,
  scsi.PR_EXCLUSIVE_ACCESS,
  scsi.PR_WRITE_EXCLUSIVE_REGISTRANTS,
  scsi.PR_EXCLUSIVE_ACCESS_REGISTRANTS,
  scsi.PR_WRITE_EXCLUSIVE_ALL,
  scsi.PR_EXCLUSIVE_ACCESS_ALL,
]);

export class Reservation {
  /** Of the nexus; 0: it is not registered. */
  key = 0n;
  generation = 0;
  /** Of the persistent reservation, which the nexus holds; 0: there is none. */
  type = 0;
  /** By RESERVE. */
  isReserved = false;

  /** All registrants hold it, and no key is its own. */
  get isOfAll(): boolean {
    return this.type === scsi.PR_WRITE_EXCLUSIVE_ALL || this.type === scsi.PR_EXCLUSIVE_ACCESS_ALL;
  }

  /** Persistent ones live until power is lost: APTPL is refused. */
  reset(isPowerOn: boolean): void {
    this.isReserved = false;
    if (!isPowerOn) return;
    this.#unregister();
    this.generation = 0;
  }

  save(): ReservationState {
    const { key, generation, type, isReserved } = this;
    return { key: String(key), generation, type, isReserved };
  }

  load({ key, generation, type, isReserved }: ReservationState): void {
    this.key = BigInt(key);
    this.generation = generation;
    this.type = type;
    this.isReserved = isReserved;
  }

  /** RESERVE. False: conflict with a registration, as RELEASE has. */
  reserve(isReserved: boolean): boolean {
    if (this.key !== 0n) return false;
    this.isReserved = isReserved;
    return true;
  }

  carryOut(request: ReserveRequest): ReserveOutcome {
    const { action, key, actionKey } = request;
    if (action === scsi.PR_REGISTER_AND_IGNORE) return this.#register(actionKey);
    if (key !== this.key) return 'conflict';
    if (action === scsi.PR_REGISTER) {
      // Nobody who registers as nobody.
      return this.key === 0n && actionKey === 0n ? 'good' : this.#register(actionKey);
    }
    if (this.key === 0n) return 'conflict';
    switch (action) {
      case scsi.PR_RESERVE:
        return this.#hold(request);
      case scsi.PR_RELEASE:
        return this.#release(request);
      case scsi.PR_CLEAR:
        this.#unregister();
        this.#count();
        return 'good';
      default:
        return this.#preempt(request);
    }
  }

  #register(key: bigint): ReserveOutcome {
    if (key === 0n) this.#unregister();
    else this.key = key;
    this.#count();
    return 'good';
  }

  /** The holder goes, and with it what it held; so does the last registrant. */
  #unregister(): void {
    this.key = 0n;
    this.type = 0;
  }

  #hold({ scope, type }: ReserveRequest): ReserveOutcome {
    if (scope !== LU_SCOPE || !TYPES.has(type)) return 'wrong scope or type';
    if (this.type !== 0 && this.type !== type) return 'conflict';
    this.type = type;
    return 'good';
  }

  #release({ scope, type }: ReserveRequest): ReserveOutcome {
    if (this.type === 0) return 'good';
    if (scope !== LU_SCOPE || this.type !== type) return 'wrong release';
    this.type = 0;
    return 'good';
  }

  /** Of whom there is nobody else: of itself, or of all others, who are none. 5.12.11.4 */
  #preempt({ action, scope, type, actionKey }: ReserveRequest): ReserveOutcome {
    const isHolder = this.type !== 0 && (this.isOfAll ? actionKey === 0n : actionKey === this.key);
    if (isHolder) {
      if (scope !== LU_SCOPE || !TYPES.has(type)) return 'wrong scope or type';
      this.type = type;
    } else if (actionKey === 0n) {
      return 'wrong action key';
    } else if (actionKey !== this.key) {
      return 'conflict';
    } else {
      this.#unregister();
    }
    this.#count();
    const isOwn = actionKey !== 0n;
    return isOwn && action === scsi.PR_PREEMPT_AND_ABORT ? 'preempted' : 'good';
  }

  #count(): void {
    this.generation = (this.generation + 1) >>> 0;
  }
}
