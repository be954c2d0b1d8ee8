/**
 * Layers of a disk as people write them: text (`crypt:/etc/keys/vm0`), or a mapping with one key,
 * whose value has the names of `storage/stack/stack-spec.ts`.
 */
import * as z from 'zod';
import { ConfigError } from '../../base/errors.ts';
import {
  checkStack,
  type CryptSpec,
  type FaultSpec,
  type FileSpec,
  type HttpSpec,
  type LimitSpec,
  type MemorySpec,
  type NbdSpec,
  type OverlaySpec,
  parsePart,
  type PartSpec,
  type Qcow2Spec,
  type S3Spec,
  type StackSpec,
  type ZonedSpec,
} from '../../storage/index.ts';
import { bool, int, mapping, text } from '../input-fields.ts';
import type { Report } from '../port-config.ts';

/** Names every key of a layer: one that is missing here does not compile. */
type Shape<Spec> = Record<Exclude<keyof Spec, 'kind'>, z.ZodType>;

const words = (expects: string) => text(/^[^\0]{1,4096}$/, expects);
const choice = <const V extends readonly [string, ...string[]]>(...values: V) =>
  z.enum(values, { error: `one of ${values.join(', ')}` }).optional();
const bytes = () => int(512, 2 ** 53 - 512, 'bytes');
const number = (expects: string) => z.number({ error: expects }).min(0, { error: expects });

const seconds = () => number('seconds').optional();

const cache = mapping(
  { path: words('a path').optional(), sizeBytes: bytes() },
  'a mapping with path and sizeBytes',
).optional();

const rule = mapping(
  {
    op: z.enum(['read', 'write', 'flush', 'discard', 'zero', 'any'], { error: 'an operation' }),
    at: int(0, 2 ** 53 - 1, 'a position in bytes').optional(),
    sizeBytes: bytes().optional(),
    probability: z.number({ error: 'a number from 0 to 1' }).min(0).max(1).optional(),
    times: int(1, 2 ** 31, 'how many times').optional(),
    action: z.enum(['error', 'delay', 'torn', 'crash'], { error: 'error, delay, torn, crash' }),
    errno: words('the name of an error, such as EIO').optional(),
    ms: number('milliseconds').optional(),
  },
  'a rule with op and action',
);
export const FaultRulesInput = z.array(rule, { error: 'a list of rules' }).max(64, {
  error: 'a list of at most 64 rules',
});

export const limitShape = {
  iops: number('requests per second').optional(),
  bytesPerSecond: number('bytes per second').optional(),
  burstSeconds: number('seconds of the rate').optional(),
} satisfies Shape<LimitSpec>;

const SHAPES = {
  file: {
    path: words('a path'),
    direct: choice('off', 'auto', 'on'),
    uring: choice('off', 'auto', 'on'),
    lock: bool().optional(),
  } satisfies Shape<FileSpec>,
  memory: { sizeBytes: bytes() } satisfies Shape<MemorySpec>,
  null: { sizeBytes: bytes() } satisfies Shape<MemorySpec>,
  nbd: { uri: words('a URI'), timeoutSeconds: seconds() } satisfies Shape<NbdSpec>,
  http: { url: words('a URL'), cache, timeoutSeconds: seconds() } satisfies Shape<HttpSpec>,
  s3: {
    endpoint: words('a URL'),
    region: words('a region'),
    bucket: words('a bucket'),
    key: words('a key'),
    addressing: choice('path', 'virtual-host'),
    credentialsFile: words('a path').optional(),
    cache,
    timeoutSeconds: seconds(),
  } satisfies Shape<S3Spec>,
  limit: limitShape,
  fault: {
    seed: int(0, 2 ** 32 - 1, 'a seed').optional(),
    rules: FaultRulesInput.optional(),
    cache: choice('none', 'volatile'),
  } satisfies Shape<FaultSpec>,
  crypt: {
    keyFile: words('a path'),
    discard: choice('pass', 'keep'),
  } satisfies Shape<CryptSpec>,
  overlay: { folder: words('a path') } satisfies Shape<OverlaySpec>,
  qcow2: { backing: choice('refuse', 'follow') } satisfies Shape<Qcow2Spec>,
  zoned: {
    zoneBytes: bytes().optional(),
    capacityBytes: bytes().optional(),
    conventional: int(0, 65535, 'how many zones').optional(),
    maxOpen: int(0, 65536, 'how many zones, 0 for no limit').optional(),
    maxActive: int(0, 65536, 'how many zones, 0 for no limit').optional(),
    granularityBytes: int(512, 4096, 'a power of two from 512 to 4096').optional(),
  } satisfies Shape<ZonedSpec>,
} satisfies Record<PartSpec['kind'], z.core.$ZodLooseShape>;

const EXPECTS = 'a layer: text such as file:/srv/a.img, or a mapping with one key such as file';

const oneKey = mapping(
  Object.fromEntries(
    Object.entries(SHAPES).map(([kind, shape]) => {
      const names = Object.keys(shape).join(', ');
      const expects = `text, or a mapping with ${names}`;
      const value = z.union([words(expects), mapping(shape, expects)], { error: expects });
      return [kind, value.optional()];
    }),
  ),
  EXPECTS,
);

export const LayersInput = z
  .array(z.union([words(EXPECTS), oneKey], { error: EXPECTS }), { error: 'a list of layers' })
  .min(1, { error: 'a list with at least one layer' })
  .meta({
    description:
      'What the disk is made of, from top to bottom; the last one holds the bytes. Each is text ' +
      '(`/srv/a.img`, `crypt:/etc/keys/vm0`) or a mapping with one key (`limit: {iops: 500}`).',
  });

/** The stack, or null after reporting what is wrong with it. */
export function resolveLayers(
  input: z.output<typeof LayersInput>,
  keys: readonly PropertyKey[],
  report: Report,
): StackSpec | null {
  const parts = input.map((layer, i) => {
    try {
      return partOf(layer as string | Record<string, unknown>);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      report([...keys, i], error.message.replace(/^layer: /, ''));
      return null;
    }
  });
  if (parts.includes(null)) return null;
  try {
    checkStack(parts as PartSpec[], 'layers');
    return parts as PartSpec[];
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    report(keys, error.message.replace(/^layers(\[\d+\])?: /, ''));
    return null;
  }
}

function partOf(layer: string | Record<string, unknown>): PartSpec {
  if (typeof layer === 'string') return parsePart(layer, 'layer');
  const [entry, ...others] = Object.entries(layer);
  if (entry === undefined || others.length > 0) {
    throw new ConfigError('layer', `is not ${EXPECTS}`);
  }
  const [kind, value] = entry;
  if (typeof value === 'string') return parsePart(`${kind}:${value}`, 'layer');
  return { kind, ...(value as object) } as PartSpec;
}

/** As the configuration has it: for the state file. */
export function layersInput(stack: StackSpec): Record<string, unknown>[] {
  return stack.map(({ kind, ...rest }) => ({ [kind]: rest }));
}

/** For people: `crypt`, `file:/srv/a.img`. Nothing secret is in a spec. */
export function layerText(part: PartSpec): string {
  const { kind, ...rest } = part;
  const words = Object.entries(rest).filter(([name]) => name !== 'rules' && name !== 'cache');
  if (words.length === 0) return kind;
  const [[, first]] = words as [[string, unknown]];
  const bare = kind !== 'limit' && kind !== 's3' && kind !== 'fault' && kind !== 'zoned';
  const options = (bare ? words.slice(1) : words).map(([name, value]) => `${name}=${value}`);
  return `${kind}:${[...(bare ? [String(first)] : []), ...options].join(',')}`;
}
