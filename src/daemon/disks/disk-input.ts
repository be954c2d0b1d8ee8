/** A disk as people write it, in the configuration and as the body of `POST /v1/disks`. */
import * as z from 'zod';
import {
  bool,
  fileMode,
  int,
  mapping,
  NAME,
  NAME_RULE,
  owner,
  socketPath,
  text,
} from '../input-fields.ts';
import { ConfigProblems, describeIssues, type RawProblem } from '../config-problem.ts';
import { placed } from '../config-problem.ts';
import { type AccountFiles, resolveOwner } from '../owner.ts';
import {
  checkSocketPath,
  DEFAULT_SOCKET_MODE,
  parseFileMode,
  type Report,
} from '../port-config.ts';
import type { DiskConfig, DiskLimits, MediumConfig, SocketConfig } from './disk-types.ts';
import {
  FaultRulesInput,
  LayersInput,
  layersInput,
  limitShape,
  resolveLayers,
} from './layer-input.ts';

export const diskName = () => text(NAME, `the name of a disk (${NAME_RULE})`);
const snapshotName = () => text(NAME, `the name of a snapshot (${NAME_RULE})`);

const limits = () => mapping(limitShape, 'a mapping with iops, bytesPerSecond and burstSeconds');
const SIZE = 'bytes, a multiple of 512';
const sizeBytes = () => int(512, 2 ** 53 - 512, SIZE).multipleOf(512, { error: `${SIZE}` });

const worn = (cells: string) =>
  int(0, 11, 'tenths of a life').meta({
    description: `Tenths of their life that ${cells} cells have had; 0 unknown, 11 exceeded.`,
  });

export const ExportInput = mapping(
  {
    socket: socketPath().meta({ description: 'Where NBD clients connect; absolute.' }),
    readOnly: bool().default(false).meta({ description: 'Clients may not write.' }),
  },
  'a mapping with socket and readOnly',
);

/** Where front-ends connect: of disks, and of SCSI adapters. */
export const socketShape = {
  socket: socketPath().meta({ description: 'Where front-ends connect; absolute.' }),
  socketOwner: owner()
    .optional()
    .meta({ description: 'Owner of the socket, `user:group` or `uid:gid`.' }),
  socketMode: fileMode()
    .default(DEFAULT_SOCKET_MODE)
    .meta({ type: ['string', 'integer'], description: 'File mode of the socket, octal.' }),
};

export const offerShape = {
  packed: bool().default(true).meta({ description: 'Offer packed rings.' }),
  iommu: bool()
    .default(false)
    .meta({ description: 'Offer ACCESS_PLATFORM, for a guest behind a virtual IOMMU.' }),
};

/** The bytes, and what may be done with them: of disks, and of units. */
export const bytesShape = {
  layers: LayersInput,
  readOnly: bool().default(false).meta({ description: 'Nothing can be written.' }),
};

export const useShape = {
  limits: limits()
    .nullable()
    .default(null)
    .meta({ description: 'A limit on top of all layers; it can be changed at run time.' }),
  export: ExportInput.nullable()
    .default(null)
    .meta({ description: 'Serve the disk by NBD, too, on this Unix socket.' }),
};

export const DiskInput = mapping(
  {
    name: diskName().meta({ description: 'Unique name of the disk; 1 to 63 characters.' }),
    ...socketShape,
    ...bytesShape,
    queues: int(1, 64, 'queues')
      .default(1)
      .meta({ description: 'Virtqueues; a guest uses one per processor at most.' }),
    serial: text(/^[\x20-\x7e]{0,20}$/, 'at most 20 characters of ASCII')
      .optional()
      .meta({ description: 'Serial number. When absent: the first 20 characters of the name.' }),
    blockSize: z
      .union([z.literal(512), z.literal(1024), z.literal(2048), z.literal(4096)], {
        error: 'one of 512, 1024, 2048, 4096',
      })
      .default(512)
      .meta({ description: 'Logical blocks, bytes.' }),
    ...offerShape,
    secureErase: bool()
      .default(false)
      .meta({ description: 'Offer to overwrite what is erased; only over a file or memory.' }),
    lifetime: mapping(
      {
        preEolInfo: int(0, 3, 'how much of the reserve is used up').meta({
          description: '0 unknown, 1 normal, 2 warning, 3 urgent.',
        }),
        deviceLifetimeEstTypA: worn('SLC'),
        deviceLifetimeEstTypB: worn('MLC'),
      },
      'a mapping with preEolInfo, deviceLifetimeEstTypA and deviceLifetimeEstTypB',
    )
      .nullable()
      .default(null)
      .meta({ description: 'Offer LIFETIME with these values of `struct virtio_blk_lifetime`.' }),
    ...useShape,
  },
  'a mapping with name, socket and layers',
);
export type DiskInput = z.output<typeof DiskInput>;

/** `PATCH /v1/disks/{name}`. */
export const DiskUpdateInput = mapping(
  {
    limits: limits().nullable().optional().meta({ description: 'null: no limits.' }),
    sizeBytes: sizeBytes().optional().meta({ description: 'The driver is told.' }),
    shrink: bool().optional().meta({ description: 'Must be true where bytes are taken away.' }),
  },
  'an object with limits or sizeBytes',
);

export const SnapshotInput = mapping(
  { name: snapshotName().meta({ description: 'Unique among the snapshots of the disk.' }) },
  'an object with name',
);

export const RollbackInput = mapping(
  {
    name: snapshotName().optional().meta({ description: 'The last one when absent.' }),
    force: bool().optional().meta({ description: 'Also under a driver that runs.' }),
  },
  'an object with name and force',
);

export const CommitInput = mapping(
  {
    to: z
      .literal('base', { error: '"base"' })
      .optional()
      .meta({ description: 'Into the base below the overlay, which must be writable.' }),
  },
  'an object with to',
);

export const FaultsInput = mapping({ rules: FaultRulesInput }, 'an object with rules');

export const CutInput = mapping(
  {
    seed: int(0, 2 ** 32 - 1, 'a seed')
      .optional()
      .meta({ description: 'Decides what is kept.' }),
  },
  'an object with seed',
);

/** Returns the disk, or null after reporting why not. `keys` is where it stands. */
export function resolveDisk(
  input: DiskInput,
  keys: readonly PropertyKey[],
  problems: RawProblem[],
  accounts?: AccountFiles,
): DiskConfig | null {
  const before = problems.length;
  const report: Report = (below, problem) => problems.push({ keys: [...keys, ...below], problem });
  const socket = resolveSocket(input, report, accounts);
  const medium = resolveMedium(input, report);
  if (problems.length > before || medium === null) return null;
  const { name, queues, blockSize, packed, iommu, secureErase, lifetime } = input;
  const serial = input.serial ?? name.slice(0, 20);
  const offers = { packed, iommu, secureErase, lifetime };
  return { name, ...socket, ...medium, queues, serial, blockSize, ...offers };
}

export function resolveSocket(
  { socket, socketOwner: wanted, socketMode }: Pick<DiskInput, keyof typeof socketShape>,
  report: Report,
  accounts?: AccountFiles,
): SocketConfig {
  checkSocketPath(socket, ['socket'], report);
  let socketOwner = null;
  if (wanted !== undefined) {
    const found = resolveOwner(wanted, accounts);
    if (typeof found === 'string') report(['socketOwner'], found);
    else socketOwner = found;
  }
  return { socket, socketOwner, socketMode: parseFileMode(socketMode) };
}

/** Null after reporting what is wrong with the layers. */
export function resolveMedium(
  input: Pick<DiskInput, 'layers' | 'readOnly' | 'limits' | 'export'>,
  report: Report,
): Pick<MediumConfig, 'layers' | 'readOnly' | 'limits' | 'export'> | null {
  const { readOnly, limits, export: exported } = input;
  if (exported !== null) checkSocketPath(exported.socket, ['export', 'socket'], report);
  const layers = resolveLayers(input.layers, ['layers'], report);
  return layers && { layers, readOnly, limits: limits as DiskLimits | null, export: exported };
}

/** Checks a disk of the API or of the state file. @throws ConfigProblems. */
export function parseDisk(value: unknown): DiskConfig {
  const raw: RawProblem[] = [];
  const disk = resolveDisk(parseInput(DiskInput, value), [], raw);
  if (disk !== null) return disk;
  throw new ConfigProblems(raw.map((problem) => placed(problem, null)));
}

/** @throws ConfigProblems with all that is wrong with a body of the API. */
export function parseInput<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const parsed = schema.safeParse(value, { reportInput: true });
  if (parsed.success) return parsed.data;
  throw new ConfigProblems(describeIssues(parsed.error.issues).map((p) => placed(p, null)));
}

/** What `parseDisk` reads back. */
export function diskInput(config: DiskConfig): Record<string, unknown> {
  const { layers, ...rest } = config;
  return { ...socketInput(rest), layers: layersInput(layers) };
}

/** The same for whatever has a socket. */
export function socketInput<C extends SocketConfig>(config: C): Record<string, unknown> {
  const { socketOwner, socketMode, ...rest } = config;
  return {
    ...rest,
    ...(socketOwner === null ? {} : { socketOwner: `${socketOwner.uid}:${socketOwner.gid}` }),
    socketMode: socketMode.toString(8).padStart(3, '0'),
  };
}
