/** What the control API answers about disks, as zod schemas. */
import * as z from 'zod';
import type { DiskStatus } from './disk-types.ts';

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

export const DiskStatusSchema = z
  .object({
    name: z.string(),
    socket: z.string(),
    origin: z.enum(['config', 'api']).meta({
      description: 'config: changes last until a restart. api: they are remembered.',
    }),
    state: z.enum(['listening', 'negotiating', 'up', 'broken', 'failed']),
    reason: z
      .object({
        code: z.string(),
        message: z.string(),
        at: z.string().meta({ format: 'date-time' }),
      })
      .nullable()
      .meta({ description: 'Why it failed, or why its last session ended.' }),
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

/** Compiles only while the schema has what a status has. */
null as unknown as DiskStatus satisfies Readonly<z.infer<typeof DiskStatusSchema>> | DiskStatus;
true satisfies keyof DiskStatus extends keyof z.infer<typeof DiskStatusSchema> ? true : false;
true satisfies keyof z.infer<typeof DiskStatusSchema> extends keyof DiskStatus ? true : false;
