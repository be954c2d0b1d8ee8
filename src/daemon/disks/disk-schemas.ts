/** What the control API answers about disks, as zod schemas. */
import * as z from 'zod';
import type { CutResult } from '../../storage/index.ts';
import type { DiskStatus } from './disk-types.ts';
import type { AdapterStatus } from './scsi-types.ts';

const counters = (description: string) =>
  z.record(z.string(), z.number().min(0)).meta({ description });

export const DiskLatencySchema = z
  .object({
    counts: z.array(z.int().min(0)).meta({
      description: 'The i-th took less than 2^i microseconds, the last one any longer time.',
    }),
    sumMicroseconds: z.number().min(0),
  })
  .meta({ id: 'DiskLatency' });

const OriginSchema = z.enum(['config', 'api']).meta({
  description: 'config: changes last until a restart. api: they are remembered.',
});
const StateSchema = z.enum(['listening', 'negotiating', 'up', 'broken', 'failed']);
const ReasonSchema = z
  .object({
    code: z.string(),
    message: z.string(),
    at: z.string().meta({ format: 'date-time' }),
  })
  .nullable()
  .meta({ description: 'Why it failed, or why its last session ended.' });

export const DiskStatusSchema = z
  .object({
    name: z.string(),
    unit: z
      .object({ adapter: z.string(), target: z.int().min(0), lun: z.int().min(0) })
      .nullable()
      .meta({ description: 'Its place at a SCSI adapter; null: a block device of its own.' }),
    socket: z.string(),
    origin: OriginSchema,
    state: StateSchema,
    reason: ReasonSchema,
    image: z.string().nullable().meta({ description: 'The layers, as opened.' }),
    sizeBytes: z.number().nullable(),
    readOnly: z.boolean(),
    queues: z.int().min(1),
    blockSize: z.int(),
    serial: z.string(),
    layers: z.array(z.string()),
    limits: z
      .object({
        iops: z.number().optional(),
        bytesPerSecond: z.number().optional(),
        burstSeconds: z.number().optional(),
      })
      .nullable(),
    export: z.string().nullable().meta({ description: 'URI of its NBD export.' }),
    sessions: z.int().min(0).meta({ description: 'Sessions so far.' }),
    inFlight: z.int().min(0).meta({ description: 'Batches of requests that are under way.' }),
    errors: z.int().min(0).meta({ description: 'Requests that the medium failed.' }),
    lastError: z.object({ op: z.string(), at: z.number(), errno: z.string() }).nullable(),
    faults: z.int().min(0).meta({ description: 'Times that the guest broke virtio.' }),
    counters: counters('Of all queues; they grow while the disk lives.'),
    layerCounters: counters('Of the layers, by their own names.'),
    latency: z
      .record(z.string(), DiskLatencySchema)
      .meta({ description: 'By operation, from taken to answered.' }),
  })
  .meta({ id: 'DiskStatus' });

const fate = (description: string) => z.int().min(0).meta({ description });

export const CutResultSchema = z
  .object({
    seed: z.int().meta({ description: 'With it the same requests have the same fates.' }),
    requests: fate('That had not been flushed.'),
    kept: fate('Of them, those that had reached the medium.'),
    lost: fate('Those that had not.'),
    torn: fate('Those of which some sectors had.'),
  })
  .meta({ id: 'CutResult' });

null as unknown as CutResult satisfies Readonly<z.infer<typeof CutResultSchema>>;

/** Compiles only while the schema has what a status has. */
null as unknown as DiskStatus satisfies Readonly<z.infer<typeof DiskStatusSchema>> | DiskStatus;
true satisfies keyof DiskStatus extends keyof z.infer<typeof DiskStatusSchema> ? true : false;
true satisfies keyof z.infer<typeof DiskStatusSchema> extends keyof DiskStatus ? true : false;

export const AdapterStatusSchema = z
  .object({
    name: z.string(),
    socket: z.string(),
    origin: OriginSchema,
    state: StateSchema,
    reason: ReasonSchema,
    queues: z.int().min(1),
    units: z.array(z.string()).meta({ description: 'Names of its units, which are disks.' }),
    sessions: z.int().min(0).meta({ description: 'Sessions so far.' }),
    faults: z.int().min(0).meta({ description: 'Times that the guest broke virtio.' }),
    counters: counters('Of all queues; they grow while the adapter lives.'),
  })
  .meta({ id: 'AdapterStatus' });

true satisfies keyof AdapterStatus extends keyof z.infer<typeof AdapterStatusSchema> ? true : false;
true satisfies keyof z.infer<typeof AdapterStatusSchema> extends keyof AdapterStatus ? true : false;
