/** All checks of back-ends, in the order in which they run. */
import type { Check } from './check.ts';
import { negotiationChecks } from './checks/negotiation.ts';
import { ringChecks } from './checks/rings.ts';
import { ringStateChecks } from './checks/ring-states.ts';
import { tableChecks } from './checks/table.ts';

export const BACK_END_CHECKS: readonly Check[] = [
  ...negotiationChecks,
  ...tableChecks,
  ...ringStateChecks,
  ...ringChecks,
];
