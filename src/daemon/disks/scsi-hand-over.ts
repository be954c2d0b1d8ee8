/** What a running storage target tells its successor of a SCSI adapter and of its units. */
import * as z from 'zod';
import type { LunState } from '../../devices/scsi/index.ts';
import {
  CountsSchema,
  imageFinal,
  imagePlan,
  reasonSchema,
  SessionPartSchema,
} from './disk-hand-over.ts';

const fd = z.int().min(0);
const word = z.int().min(0);
const flag = z.int().min(0).max(1);

export const UnitPlanSchema = z.object(imagePlan);
export type UnitPlan = z.infer<typeof UnitPlanSchema>;

/** Phase one, while the old process serves. */
export const AdapterPlanSchema = z.object({
  /** As in the configuration, without its units: judged by `parseAdapter`. */
  config: z.record(z.string(), z.unknown()),
  origin: z.enum(['config', 'api']),
  works: z.boolean(),
  /** Memory of its session. */
  memory: SessionPartSchema.nullable(),
  units: z.array(UnitPlanSchema).max(256),
});
export type AdapterPlan = z.infer<typeof AdapterPlanSchema>;

const LunStateSchema = z.object({
  attentions: word,
  writeCache: flag,
  descriptorSense: flag,
  softwareProtect: flag,
  reservation: z.object({
    key: z.string().regex(/^\d{1,20}$/),
    generation: word,
    type: word,
    isReserved: z.boolean(),
  }),
});

const UnitFinalSchema = z.object({
  name: z.string().min(1).max(80),
  ...imageFinal,
  /** What the driver has set of the unit; null: it does not work. */
  state: LunStateSchema.nullable(),
});
export type UnitFinal = z.infer<typeof UnitFinalSchema>;

/** Phase two, while nobody serves and all images are closed. */
export const AdapterFinalSchema = z.object({
  name: z.string().min(1).max(63),
  /** Null: the adapter does not work. */
  listener: fd.nullable(),
  session: SessionPartSchema.nullable(),
  sessions: word,
  reason: reasonSchema,
  /** Bytes of CDBs and of sense data, which the driver may have set. */
  cdbBytes: z.int().min(16).max(260),
  senseBytes: z.int().min(0).max(252),
  /** The driver has still to be told of events. */
  hasEvents: z.boolean(),
  counts: CountsSchema,
  units: z.array(UnitFinalSchema).max(256),
});
export type AdapterFinal = z.infer<typeof AdapterFinalSchema>;

// Compiles only while all that a unit remembers can be sent.
null as unknown as LunState satisfies Readonly<z.infer<typeof LunStateSchema>> | LunState;
true satisfies keyof LunState extends keyof z.infer<typeof LunStateSchema> ? true : false;
