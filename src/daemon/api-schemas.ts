/** What the control API answers, as zod schemas: the source of /openapi.json. */
import * as z from 'zod';
import { PORT_POLICIES } from '../devices/net/index.ts';
import type {
  MacEntry,
  PortStatus,
  SwitchEvent,
  VlanConfig,
  WorkerStatus,
} from './switch-types.ts';

const counters = z
  .record(z.string(), z.int().min(0))
  .meta({ description: 'By name; they grow while the port lives.' });
const time = z.string().meta({ format: 'date-time' });

export const VlanSchema = z
  .discriminatedUnion('mode', [
    z.object({ mode: z.literal('access'), vid: z.int() }),
    z.object({
      mode: z.literal('trunk'),
      allowed: z.union([z.literal('all'), z.array(z.int())]),
      native: z.int().nullable(),
    }),
  ])
  .meta({ id: 'Vlan' });

export const QueueStatusSchema = z
  .object({
    index: z.int().min(0),
    name: z.string().meta({ description: 'receiveq1, transmitq1, ... as virtio names them.' }),
    size: z.int().min(0),
    enabled: z.boolean(),
    started: z.boolean(),
    fault: z.string().nullable().meta({ description: 'What broke the queue, until its reset.' }),
    counters,
  })
  .meta({ id: 'QueueStatus' });

const features = z.object({
  bits: z.string().meta({ description: 'Hexadecimal.' }),
  names: z.array(z.string()),
});

export const SessionStatusSchema = z
  .object({
    messages: z.int().min(0),
    refusals: z.int().min(0),
    log: z
      .object({ bytes: z.int(), active: z.boolean() })
      .nullable()
      .meta({ description: 'Dirty log of a migration; null: the front-end shares none.' }),
    iotlb: z
      .object({
        entries: z.int().min(0),
        misses: z.int().min(0),
        updates: z.int().min(0),
        invalidations: z.int().min(0),
      })
      .nullable()
      .meta({ description: 'null unless the driver is behind an IOMMU.' }),
    channel: z
      .object({ requests: z.int().min(0) })
      .nullable()
      .meta({ description: 'Requests to the front-end; null without a backend channel.' }),
    postcopy: z.enum(['none', 'advised', 'listening']),
  })
  .meta({ id: 'SessionStatus' });

export const PortStatusSchema = z
  .object({
    name: z.string(),
    kind: z.enum(['vhost-user', 'tap', 'packet', 'xdp', 'vduse']),
    endpoint: z.string(),
    state: z.enum(['listening', 'connecting', 'negotiating', 'up', 'broken', 'down']),
    reason: z
      .object({ code: z.string(), message: z.string(), at: time })
      .nullable()
      .meta({ description: 'Why the port is not up, or why its last session ended.' }),
    linkUp: z.boolean(),
    sessions: z.int().min(0).meta({ description: 'Sessions so far.' }),
    vlan: VlanSchema,
    mtu: z.int(),
    policy: z.enum(PORT_POLICIES).meta({ description: 'What it is tuned for.' }),
    features: features.nullable(),
    protocolFeatures: features.nullable(),
    memory: z.object({ regions: z.int(), bytes: z.number() }).nullable(),
    session: SessionStatusSchema.nullable(),
    queues: z.array(QueueStatusSchema),
    counters,
  })
  .meta({ id: 'PortStatus' });

export const MacEntrySchema = z
  .object({
    mac: z.string(),
    vlan: z.int(),
    port: z.string(),
    ageSeconds: z.number().min(0),
  })
  .meta({ id: 'MacEntry' });

export const WorkerStatusSchema = z
  .object({
    id: z.int(),
    polls: z.number(),
    sleeps: z.number(),
    wakeups: z.number(),
    cpuSeconds: z.number(),
    core: z.int().nullable().meta({ description: 'The one that it runs on; null: any.' }),
    queuesTaken: z.int().min(0).meta({ description: 'Queues that came from other workers.' }),
    queuesRefused: z.int().min(0).meta({ description: 'Queues of others that it could not take.' }),
    queues: z.array(z.object({ port: z.string(), index: z.int(), chainsPerSecond: z.number() })),
  })
  .meta({ id: 'WorkerStatus' });

export const SwitchEventSchema = z
  .object({
    at: time,
    kind: z.string(),
    port: z.string().nullable(),
    disk: z.string().optional(),
    message: z.string(),
  })
  .meta({ id: 'SwitchEvent' });

export const ErrorSchema = z
  .object({
    error: z.object({
      code: z.string().meta({ description: 'Stable: ERR_VRING_...' }),
      message: z.string(),
      path: z.string().optional().meta({ description: 'Which part of the request is wrong.' }),
      problems: z
        .array(z.object({ path: z.string(), problem: z.string() }))
        .optional()
        .meta({ description: 'All of them, when there are several.' }),
    }),
  })
  .meta({ id: 'Error' });

export const VersionSchema = z
  .object({
    name: z.literal('vring'),
    version: z.string(),
    api: z.literal('v1'),
    node: z.string(),
    pid: z.int(),
    startedAt: time,
  })
  .meta({ id: 'Version' });
export type Version = z.infer<typeof VersionSchema>;

/** Compiles only while the schemas and the types of the switch say the same. */
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
type Mutable<T> = T extends object ? { -readonly [K in keyof T]: Mutable<T[K]> } : T;
true satisfies Same<z.infer<typeof VlanSchema>, Mutable<VlanConfig>>;
true satisfies Same<z.infer<typeof PortStatusSchema>, Mutable<PortStatus>>;
true satisfies Same<z.infer<typeof MacEntrySchema>, Mutable<MacEntry>>;
true satisfies Same<z.infer<typeof WorkerStatusSchema>, Mutable<WorkerStatus>>;
true satisfies Same<z.infer<typeof SwitchEventSchema>, Mutable<SwitchEvent>>;
