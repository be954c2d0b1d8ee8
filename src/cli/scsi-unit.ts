import type { StackSpec } from '../storage/index.ts';

/** One logical unit. */
export type UnitSpec = {
  readonly target: number;
  readonly lun: number;
  /** What it is made of, from top to bottom. */
  readonly stack: StackSpec;
  readonly readOnly: boolean;
};
