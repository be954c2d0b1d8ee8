/** All checks of back-ends, in the order in which they run. */
import type { Check } from './check.ts';
import { channelChecks } from './checks/channel.ts';
import { configChecks } from './checks/config.ts';
import { deviceChecks } from './checks/devices.ts';
import { framingChecks } from './checks/framing.ts';
import { hostileChecks } from './checks/hostile.ts';
import { inflightChecks } from './checks/inflight.ts';
import { iotlbChecks } from './checks/iotlb.ts';
import { memoryChecks } from './checks/memory.ts';
import { migrationChecks } from './checks/migration.ts';
import { negotiationChecks } from './checks/negotiation.ts';
import { ringChecks } from './checks/rings.ts';
import { ringStateChecks } from './checks/ring-states.ts';
import { tableChecks } from './checks/table.ts';
import { zonedChecks } from './checks/zoned.ts';

export const BACK_END_CHECKS: readonly Check[] = [
  ...negotiationChecks,
  ...tableChecks,
  ...ringStateChecks,
  ...ringChecks,
  ...memoryChecks,
  ...configChecks,
  ...deviceChecks,
  ...zonedChecks,
  ...migrationChecks,
  ...iotlbChecks,
  ...inflightChecks,
  ...channelChecks,
  ...framingChecks,
  ...hostileChecks,
];
