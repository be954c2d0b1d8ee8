/** Logical units as people name them: `TARGET:LUN`. */
import { ConfigError } from '../base/errors.ts';
import { MAX_LUN, MAX_TARGET } from '../devices/scsi/index.ts';
import type { StackSpec } from '../storage/index.ts';

/** One logical unit. */
export type UnitSpec = {
  readonly target: number;
  readonly lun: number;
  /** What it is made of, from top to bottom. */
  readonly stack: StackSpec;
  readonly readOnly: boolean;
};

/** `0:1`. @throws ConfigError at `path`. */
export function parseUnitName(text: string, path: string): { target: number; lun: number } {
  const match = /^(\d{1,3}):(\d{1,3})$/.exec(text);
  const [target, lun] = [Number(match?.[1]), Number(match?.[2])];
  if (target <= MAX_TARGET && lun <= MAX_LUN) return { target, lun };
  const expected = `TARGET:LUN, from 0:0 to ${MAX_TARGET}:${MAX_LUN}`;
  throw new ConfigError(path, `'${text}' is no unit; expected is ${expected}`);
}
