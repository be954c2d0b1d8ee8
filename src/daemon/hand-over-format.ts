/**
 * What a running switch tells its successor, as zod schemas. Every number that names a descriptor
 * is a position among those of the same message. The state of a session is judged where it is
 * understood, in vhost-user/.
 *
 * A change of anything here raises HAND_OVER_FORMAT.
 */
import * as z from 'zod';
import { MAX_DISKS, MAX_PORTS, MAX_WORKERS } from '../base/limits.ts';
import { PORT_POLICIES } from '../devices/net/index.ts';
import { VlanSchema } from './api-schemas.ts';
import { VringError } from '../base/errors.ts';
import { AdapterFinalSchema, AdapterPlanSchema } from './disks/scsi-hand-over.ts';
import { DiskFinalSchema, DiskPlanSchema, SessionPartSchema } from './disks/disk-hand-over.ts';
import { ERR_HAND_OVER } from './hand-over-channel.ts';
import { MAX_MAC_ENTRIES, MAX_UPLINK_QUEUES } from './port-input.ts';
import type { PortConfig } from './switch-types.ts';

const owner = z.object({ uid: z.int().min(0), gid: z.int().min(0) });
const fd = z.int().min(0);
const text = z.string().max(4096);
const counters = z.record(z.string().max(64), z.number().min(0));

const policy = z.enum(PORT_POLICIES);

const common = {
  name: z.string().min(1).max(63),
  vlan: VlanSchema,
  offload: z.object({ csum: z.boolean(), tso: z.boolean(), uso: z.boolean() }),
  mtu: z.int().min(68).max(65535),
  reflect: z.boolean(),
  macLimit: z.int().min(1).max(MAX_MAC_ENTRIES),
  policy: policy.exactOptional(),
};

const PortConfigSchema = z.discriminatedUnion('kind', [
  z.object({
    ...common,
    kind: z.literal('vhost-user'),
    path: text,
    mode: z.enum(['server', 'client']),
    socketOwner: owner.nullable(),
    socketMode: z.int().nullable(),
    queuePairs: z.int().min(1).max(64),
    mac: text.nullable(),
    packed: z.boolean(),
    mrgRxbuf: z.boolean(),
    iommu: z.boolean(),
    postcopy: z.boolean(),
  }),
  z.object({
    ...common,
    kind: z.literal('tap'),
    interface: text,
    queues: z.int().min(1).max(MAX_UPLINK_QUEUES),
  }),
  z.object({
    ...common,
    kind: z.literal('packet'),
    interface: text,
    queues: z.int().min(1).max(MAX_UPLINK_QUEUES),
    qdiscBypass: z.boolean(),
  }),
  z.object({
    ...common,
    kind: z.literal('xdp'),
    interface: text,
    queues: z.int().min(1).max(MAX_UPLINK_QUEUES).nullable(),
    copyMode: z.enum(['auto', 'copy', 'zero-copy']),
    attach: z.enum(['auto', 'native', 'generic']),
  }),
  z.object({
    ...common,
    kind: z.literal('vduse'),
    device: text,
    mac: text.nullable(),
    packed: z.boolean(),
    mrgRxbuf: z.boolean(),
    bind: z.enum(['virtio', 'vhost', 'none']),
    keep: z.boolean(),
  }),
]);

const reason = z.object({ code: text, message: text, at: text }).nullable();

export type SessionPart = z.infer<typeof SessionPartSchema>;

/** Phase one, while the old process serves: what the new one can prepare. */
const PortPlanSchema = z.object({
  /** Its number in the old process: the MAC table's. */
  number: z
    .int()
    .min(0)
    .max(MAX_PORTS - 1),
  config: PortConfigSchema,
  linkUp: z.boolean(),
  /** TAP: its queues, and ACCEPT_* bits. */
  tap: z.object({ fds: z.array(fd).min(1).max(MAX_UPLINK_QUEUES), accepts: z.int() }).nullable(),
  /** Memory of its session. */
  memory: SessionPartSchema.nullable(),
});
export type PortPlan = z.infer<typeof PortPlanSchema>;

export const HandOverPlanSchema = z.object({
  version: text,
  pid: z.int(),
  config: z.object({
    control: z.object({ path: text, mode: z.int().nullable(), owner: owner.nullable() }),
    http: text.nullable(),
    stateFile: text.nullable(),
    mac: z.object({ ageingSeconds: z.int(), limit: z.int() }),
    spinMicroseconds: z.number(),
    policy,
    workers: z.int().min(1).max(MAX_WORKERS).default(1),
    workerCores: z.array(z.int().min(0)).max(MAX_WORKERS).nullable().default(null),
  }),
  control: fd,
  ports: z.array(PortPlanSchema).max(MAX_PORTS),
  disks: z.array(DiskPlanSchema).max(MAX_DISKS),
  adapters: z.array(AdapterPlanSchema).max(MAX_DISKS),
  events: z
    .array(
      z.object({
        at: text,
        kind: text,
        port: text.nullable(),
        disk: text.optional(),
        message: text,
      }),
    )
    .max(1000),
});
export type HandOverPlan = z.infer<typeof HandOverPlanSchema>;

/** Phase two, while nobody serves: what changed last. */
const PortFinalSchema = z.object({
  number: z
    .int()
    .min(0)
    .max(MAX_PORTS - 1),
  /** vhost-user, server mode: the listening socket. */
  listener: fd.nullable(),
  sessions: z.int().min(0),
  reason,
  /** vhost-user: as in docs/device-state.md, text; without learned addresses. */
  device: z.string().nullable(),
  switchCounters: counters,
  /** Uplinks: counters of the data half. */
  tapCounters: counters.nullable(),
  session: SessionPartSchema.nullable(),
});
export type PortFinal = z.infer<typeof PortFinalSchema>;

export const HandOverStateSchema = z.object({
  /** CLOCK_MONOTONIC when the data plane stopped. */
  stoppedAtMs: z.number(),
  ports: z.array(PortFinalSchema).max(MAX_PORTS),
  disks: z.array(DiskFinalSchema).max(MAX_DISKS),
  adapters: z.array(AdapterFinalSchema).max(MAX_DISKS),
});
export type HandOverState = z.infer<typeof HandOverStateSchema>;

export const FailureSchema = z.object({ code: text, message: text });
export const RunningSchema = z.object({ pauseMs: z.number() });

const saying = (error: string) => z.string({ error }).max(4096, { error });
const requestKeys = {
  socket: saying('the path of a socket').meta({
    description: 'Where the new process listens for the old one.',
  }),
  format: z.int({ error: 'a whole number' }).meta({
    description: 'Version of the hand-over format that it understands.',
  }),
  version: saying('a version').meta({ description: 'Its version.' }),
};

/** What the control API takes as POST /v1/hand-over. */
export const HandOverRequestSchema = z.strictObject(requestKeys, {
  error: ({ code }) =>
    code === 'unrecognized_keys' ? JSON.stringify(Object.keys(requestKeys)) : 'an object',
});
export type HandOverRequest = z.infer<typeof HandOverRequestSchema>;

/** @throws VringError ERR_VRING_HAND_OVER naming what is wrong where. */
export function parseBody<S extends z.ZodType>(schema: S, kind: string, body: unknown): z.infer<S> {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const where = issue?.path.join('.') ?? '';
  throw new VringError(ERR_HAND_OVER, `hand-over message "${kind}": ${where}: ${issue?.message}`);
}

/** CLOCK_MONOTONIC in milliseconds: the same in all processes of a host. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}

// Compiles only while a configuration can be sent.
type Sent = z.infer<typeof PortConfigSchema>;
null as unknown as PortConfig satisfies Readonly<Sent> | PortConfig;
