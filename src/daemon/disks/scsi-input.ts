/** SCSI adapters as people write them, in the configuration and as bodies of `POST /v1/scsi`. */
import { createHash } from 'node:crypto';
import * as z from 'zod';
import { ConfigError } from '../../base/errors.ts';
import { MAX_LUNS } from '../../devices/scsi/index.ts';
import { ConfigProblems, placed, type RawProblem } from '../config-problem.ts';
import { int, mapping, text } from '../input-fields.ts';
import type { AccountFiles } from '../owner.ts';
import type { Report } from '../port-config.ts';
import {
  bytesShape,
  diskName,
  offerShape,
  parseInput,
  resolveMedium,
  resolveSocket,
  socketInput,
  socketShape,
  useShape,
} from './disk-input.ts';
import { layersInput } from './layer-input.ts';
import { type AdapterConfig, parseUnitPlace, type UnitConfig, unitName } from './scsi-types.ts';

const PLACE = 'a unit as TARGET:LUN, from "0:0" to "255:255"';

export const UnitInput = mapping(
  {
    unit: text(/^\d{1,3}:\d{1,3}$/, PLACE).meta({
      description: 'Its place, `TARGET:LUN`; both from 0 to 255.',
    }),
    ...bytesShape,
    serial: text(/^[\x20-\x7e]{0,36}$/, 'at most 36 characters of ASCII')
      .optional()
      .meta({ description: 'Serial number. When absent: made of the names of adapter and unit.' }),
    blockSize: z
      .union([z.literal(512), z.literal(4096)], { error: 'one of 512, 4096' })
      .default(512)
      .meta({ description: 'Logical blocks, bytes.' }),
    ...useShape,
  },
  'a mapping with unit and layers',
);
export type UnitInput = z.output<typeof UnitInput>;

export const AdapterInput = mapping(
  {
    name: diskName().meta({
      description: 'Unique name among adapters and disks; 1 to 63 characters.',
    }),
    ...socketShape,
    queues: int(1, 64, 'request queues')
      .default(1)
      .meta({ description: 'Request queues; a guest uses one per processor at most.' }),
    ...offerShape,
    units: z
      .array(UnitInput, { error: 'a list of units' })
      .max(MAX_LUNS, { error: `a list of at most ${MAX_LUNS} units` })
      .default([])
      .meta({ description: `Its units, at most ${MAX_LUNS}; more can be attached later.` }),
  },
  'a mapping with name, socket and units',
);
export type AdapterInput = z.output<typeof AdapterInput>;

/** Returns the adapter, or null after reporting why not. `keys` is where it stands. */
export function resolveAdapter(
  input: AdapterInput,
  keys: readonly PropertyKey[],
  problems: RawProblem[],
  accounts?: AccountFiles,
): AdapterConfig | null {
  const before = problems.length;
  const report: Report = (below, problem) => problems.push({ keys: [...keys, ...below], problem });
  const socket = resolveSocket(input, report, accounts);
  const units = input.units.map((unit, i) => {
    return resolveUnit(unit, input.name, ['units', i], report);
  });
  if (problems.length > before) return null;
  const { name, queues, packed, iommu } = input;
  return { name, ...socket, queues, packed, iommu, units: units.filter((unit) => unit !== null) };
}

function resolveUnit(
  input: UnitInput,
  adapter: string,
  keys: readonly PropertyKey[],
  report: Report,
): UnitConfig | null {
  const below: Report = (more, problem) => report([...keys, ...more], problem);
  const medium = resolveMedium(input, below);
  try {
    const place = parseUnitPlace(input.unit, 'unit');
    const name = unitName(adapter, place.target, place.lun);
    const serial = input.serial ?? serialOf(name);
    return medium && { name, ...place, ...medium, serial, blockSize: input.blockSize };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    below(['unit'], `${JSON.stringify(input.unit)} is not ${PLACE}`);
    return null;
  }
}

/** Checks an adapter of the API or of the state file. @throws ConfigProblems. */
export function parseAdapter(value: unknown): AdapterConfig {
  const raw: RawProblem[] = [];
  const adapter = resolveAdapter(parseInput(AdapterInput, value), [], raw);
  if (adapter !== null) return adapter;
  throw new ConfigProblems(raw.map((problem) => placed(problem, null)));
}

/** The same for a unit of an adapter. @throws ConfigProblems. */
export function parseUnit(value: unknown, adapter: string): UnitConfig {
  const raw: RawProblem[] = [];
  const unit = resolveUnit(parseInput(UnitInput, value), adapter, [], (keys, problem) => {
    raw.push({ keys, problem });
  });
  if (unit !== null) return unit;
  throw new ConfigProblems(raw.map((problem) => placed(problem, null)));
}

/** What `parseAdapter` reads back. */
export function adapterInput({ units, ...rest }: AdapterConfig): Record<string, unknown> {
  return { ...socketInput(rest), units: units.map(unitInput) };
}

/** What `parseUnit` reads back. */
export function unitInput(config: UnitConfig): Record<string, unknown> {
  const { name: _, target, lun, layers, ...rest } = config;
  return { unit: `${target}:${lun}`, ...rest, layers: layersInput(layers) };
}

/** Guests tell disks apart by it. */
function serialOf(name: string): string {
  if (name.length <= 36) return name;
  return createHash('sha256').update(name).digest('hex').slice(0, 32);
}
