/** What a running storage target tells its successor of a disk; part of hand-over-format.ts. */
import * as z from 'zod';
import type { DiskCounts } from './disk-counts.ts';

const fd = z.int().min(0);
const text = z.string().max(4096);
const count = z.number().min(0);

/** A session's state and the descriptors that it refers to, in its own order. */
export const SessionPartSchema = z.object({ state: z.unknown(), fds: z.array(fd) });

export const reasonSchema = z.object({ code: text, message: text, at: text }).nullable();

/** `ZoneShape`; an older version knew no zoned disks. */
const zonesSchema = z
  .object({
    zoneBytes: count,
    maxOpen: count,
    maxActive: count,
    maxAppendBytes: count,
    granularityBytes: count,
  })
  .nullable()
  .optional();

export const imagePlan = {
  /** As in the configuration: judged by `parseDisk`, or `parseUnit`. */
  config: z.record(z.string(), z.unknown()),
  origin: z.enum(['config', 'api']),
  /** What the driver was told of the image; null: the disk does not work. */
  facts: z
    .object({ sizeBytes: z.int().min(512), readOnly: z.boolean(), zones: zonesSchema })
    .nullable(),
};

/** Phase one, while the old process serves. */
export const DiskPlanSchema = z.object({
  ...imagePlan,
  /** Memory of its session. */
  memory: SessionPartSchema.nullable(),
});
export type DiskPlan = z.infer<typeof DiskPlanSchema>;

export const CountsSchema = z.object({
  inFlight: count,
  errors: count,
  lastError: z.object({ op: text, at: count, errno: text }).nullable(),
  faults: count,
  counters: z.record(text, count),
  latency: z.record(
    text,
    z.object({ counts: z.array(count).max(64).readonly(), sumMicroseconds: count }),
  ),
});

export const imageFinal = {
  reason: reasonSchema,
  /** -errno of a flush that failed, and goes on failing; 0. */
  failedFlush: z.int().max(0).default(0),
  counts: CountsSchema,
};

/** Phase two, while nobody serves and the image is closed. */
export const DiskFinalSchema = z.object({
  name: z.string().min(1).max(63),
  /** Null: the disk does not work. */
  listener: fd.nullable(),
  session: SessionPartSchema.nullable(),
  sessions: z.int().min(0),
  ...imageFinal,
  /** What the driver has set: its writes wait for a flush. */
  writeback: z.boolean(),
});
export type DiskFinal = z.infer<typeof DiskFinalSchema>;

// Compiles only while all that is counted can be sent.
null as unknown as DiskCounts satisfies Readonly<z.infer<typeof CountsSchema>> | DiskCounts;
