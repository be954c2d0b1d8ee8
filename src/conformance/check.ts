/** What a check is, what it can say, and how it says so. */
import { VringError } from '../base/errors.ts';
import type { CheckContext } from './context.ts';
import type { DeviceProfile } from './profiles.ts';
import type { Transcript } from './transcript.ts';

/**
 * How much a failure matters:
 *  - `must`: the specification demands it, or its peers do not work without it;
 *  - `should`: the specification recommends it, or safety among distrusting processes needs it;
 *  - `may`: robustness or tidiness that the specification leaves open. A failure is worth knowing.
 */
export type Severity = 'must' | 'should' | 'may';

/** `full` includes `basic`, `destructive` includes both. */
export const LEVELS = ['basic', 'full', 'destructive'] as const;
export type Level = (typeof LEVELS)[number];

export type Verdict = 'pass' | 'fail' | 'not applicable' | 'error';

/** What must be there for a check to mean anything. */
export type Needs = {
  /** Protocol features that are offered. */
  readonly protocol?: readonly number[];
  /** Virtio features that are offered. */
  readonly virtio?: readonly number[];
  /** Only for these devices. */
  readonly devices?: readonly string[];
  /** The device has requests that the runner knows, so that rings can be seen to be processed. */
  readonly traffic?: boolean;
  /** At least so many vrings. */
  readonly rings?: number;
};

export type Check = {
  /** Stable: `BE-CONFIG-002`. */
  readonly id: string;
  readonly title: string;
  /** The rule, in our words. */
  readonly rule: string;
  /** Section of vhost-user.rst, or `virtio 1.2, 2.7.13`. */
  readonly section: string;
  readonly severity: Severity;
  readonly level: Level;
  readonly needs: Needs;
  /** Returns when the rule holds; throws CheckFailed or NotApplicable otherwise. */
  run(context: CheckContext): Promise<void>;
};

/** The rule does not hold. */
export class CheckFailed extends VringError {
  constructor(message: string) {
    super('ERR_VRING_CHECK_FAILED', message);
  }
}

/** The rule has nothing to say about this peer. */
export class NotApplicable extends VringError {
  constructor(message: string) {
    super('ERR_VRING_CHECK_NOT_APPLICABLE', message);
  }
}

export type CheckResult = {
  readonly check: Check;
  readonly verdict: Verdict;
  /** Why; empty for a plain pass. */
  readonly detail: string;
  /** The peer died or stopped accepting because of this check. */
  readonly critical: boolean;
  readonly milliseconds: number;
  readonly transcript: Transcript;
};

/** Everything about one peer that decides which checks apply. */
export type Offer = {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly profile: DeviceProfile;
};

type Details = Partial<Pick<Check, 'severity' | 'level' | 'needs'>>;

/** Shorthand of the catalogue: must, basic, no needs, unless said. */
export function check(
  id: string,
  title: string,
  rule: string,
  section: string,
  details: Details,
  run: Check['run'],
): Check {
  const { severity = 'must', level = 'basic', needs = {} } = details;
  return { id, title, rule, section, severity, level, needs, run };
}
