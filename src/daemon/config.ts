/**
 * The configuration of a switch: a YAML file, `--port` words, or both. Everything that is wrong is
 * reported at once, each problem with its path, value, expectation and, in a file, line and column.
 */
import { isMap, isScalar, LineCounter, parseDocument, type Document } from 'yaml';
import { ConfigError, messageOf } from '../base/errors.ts';
import {
  ConfigProblems,
  describeIssues,
  placed,
  type ConfigProblem,
  type RawProblem,
} from './config-problem.ts';
import { resolveDisk } from './disks/disk-input.ts';
import { findTwins, type PlacedAdapter } from './disks/disk-twins.ts';
import type { DiskConfig } from './disks/disk-types.ts';
import { resolveAdapter } from './disks/scsi-input.ts';
import type { AdapterConfig } from './disks/scsi-types.ts';
import { resolveOwner, type AccountFiles } from './owner.ts';
import {
  checkSocketPath,
  findDuplicates,
  parseFileMode,
  resolvePort,
  type PlacedPort,
} from './port-config.ts';
import { PortInput, SwitchInput } from './port-input.ts';
import { parsePortSpec, placeInSpec } from './port-spec.ts';
import { workersProblem } from './port-workers.ts';
import { coreProblems } from './worker-cores.ts';
import type { PortConfig, SwitchConfig } from './switch-types.ts';

/** A configuration of 256 ports has about 100 KiB. */
export const MAX_CONFIG_BYTES = 1024 * 1024;

export type ConfigSources = {
  /** Contents of `--config FILE`. */
  readonly file?: { readonly name: string; readonly text: string } | undefined;
  /** Words of `--port`, in order; they come after the ports of the file. */
  readonly ports?: readonly string[] | undefined;
  /** `--control` and `--http` win over the file. */
  readonly control?: string | undefined;
  readonly http?: string | undefined;
  /** Of all ports that say nothing; wins over the file, too. */
  readonly policy?: string | undefined;
  readonly workers?: number | undefined;
  readonly workerCores?: readonly number[] | undefined;
  readonly accounts?: AccountFiles;
};

/** Reads, checks and joins all sources. Throws ConfigProblems with everything that is wrong. */
export function buildConfig(sources: ConfigSources): SwitchConfig {
  const problems: ConfigProblem[] = [];
  const ports: (PlacedPort & { place: (raw: RawProblem) => ConfigProblem })[] = [];

  const file = readFileSource(sources, problems);
  for (const [i, input] of file.input.ports.entries()) {
    const raw: RawProblem[] = [];
    const port = resolvePort(input, ['ports', i], raw, sources.accounts);
    problems.push(...raw.map(file.place));
    if (port) ports.push({ port, keys: ['ports', i], place: file.place });
  }
  for (const spec of sources.ports ?? []) {
    const parsed = parsePortSpec(spec);
    if (parsed.problems) {
      problems.push(...parsed.problems);
      continue;
    }
    const raw: RawProblem[] = [];
    const place = (problem: RawProblem) => placeInSpec(spec, problem);
    const port = resolvePort(parsed.input, [], raw, sources.accounts);
    problems.push(...raw.map(place));
    if (port) ports.push({ port, keys: [], place });
  }
  findDuplicates(ports, (at, key, problem) => {
    const { place } = at as (typeof ports)[number];
    problems.push(place({ keys: [...at.keys, key], problem }));
  });
  const stored = resolveDisks(file, ports, problems, sources.accounts);
  const rest = resolveSwitch(file.input, file.place, sources, problems);
  for (const { port, keys, place } of ports) {
    const problem = workersProblem(port.kind, rest.workers ?? 1);
    if (problem !== null) problems.push(place({ keys: [...keys, 'kind'], problem }));
  }
  if (problems.length > 0) throw new ConfigProblems(problems);
  return { ports: ports.map(({ port }) => port), ...stored, ...rest };
}

/** Checks the body of `POST /v1/ports`; paths are those of the body. */
export function parsePort(value: unknown): PortConfig {
  const parsed = PortInput.safeParse(value, { reportInput: true });
  const raw: RawProblem[] = [];
  const port = parsed.success ? resolvePort(parsed.data, [], raw) : null;
  if (!parsed.success) raw.push(...describeIssues(parsed.error.issues));
  if (port) return port;
  throw new ConfigProblems(raw.map((p) => placed(p, null)));
}

/** Disks and SCSI adapters of the file, each with a name and a socket of its own. */
function resolveDisks(
  file: FileSource,
  ports: readonly PlacedPort[],
  problems: ConfigProblem[],
  accounts?: AccountFiles,
): { disks: DiskConfig[]; scsi: AdapterConfig[] } {
  const adapters: PlacedAdapter[] = [];
  const disks: { disk: DiskConfig; keys: readonly PropertyKey[] }[] = [];
  const raw: RawProblem[] = [];
  for (const [i, input] of file.input.disks.entries()) {
    const disk = resolveDisk(input, ['disks', i], raw, accounts);
    if (disk !== null) disks.push({ disk, keys: ['disks', i] });
  }
  for (const [i, input] of file.input.scsi.entries()) {
    const adapter = resolveAdapter(input, ['scsi', i], raw, accounts);
    if (adapter !== null) adapters.push({ adapter, keys: ['scsi', i] });
  }
  raw.push(...findTwins(disks, adapters, ports));
  problems.push(...raw.map(file.place));
  return { disks: disks.map(({ disk }) => disk), scsi: adapters.map(({ adapter }) => adapter) };
}

type FileSource = { input: SwitchInput; place: (raw: RawProblem) => ConfigProblem };

/** The file as validated input; a switch without ports when there is none or it is wrong. */
function readFileSource(sources: ConfigSources, problems: ConfigProblem[]): FileSource {
  const value: Record<string, unknown> = {};
  const lines = new LineCounter();
  let place = (raw: RawProblem): ConfigProblem => placed(raw, null);
  let root: unknown = value;
  if (sources.file) {
    const { name, text } = sources.file;
    if (Buffer.byteLength(text) > MAX_CONFIG_BYTES) {
      throw new ConfigError(name, `has more than ${MAX_CONFIG_BYTES} bytes; this is no switch`);
    }
    const doc = parseDocument(text, { lineCounter: lines, prettyErrors: false });
    const [syntax] = doc.errors;
    if (syntax) {
      const { line, col } = lines.linePos(syntax.pos[0]);
      const problem = `not YAML: ${syntax.message}`;
      throw new ConfigProblems([{ path: name, problem, position: `${name}:${line}:${col}` }]);
    }
    place = (raw) => placed(raw, `${name}:${positionOf(doc, lines, raw)}`);
    root = toValue(doc, name);
  }
  if (isRecord(root)) applyFlags(root, sources);
  const parsed = SwitchInput.safeParse(root, { reportInput: true });
  if (parsed.success) return { input: parsed.data, place };
  const flags = new Set([
    ...(sources.control ? ['control.path'] : []),
    ...(sources.http ? ['http'] : []),
  ]);
  for (const raw of describeIssues(parsed.error.issues)) {
    const path = raw.keys.join('.');
    if (flags.has(path)) problems.push(flagProblem(path, raw.problem));
    else problems.push(place(raw));
  }
  return { input: SwitchInput.parse({}), place };
}

function flagProblem(path: string, problem: string): ConfigProblem {
  return { path: path === 'http' ? '--http' : '--control', problem, position: null };
}

function applyFlags(root: Record<string, unknown>, sources: ConfigSources): void {
  if (sources.http !== undefined) root.http = sources.http;
  if (sources.policy !== undefined) root.policy = sources.policy;
  if (sources.control === undefined) return;
  const control = isRecord(root.control) ? root.control : {};
  root.control = { ...control, path: sources.control };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The document as plain values. YAML 1.2 reads `0660` as six hundred and sixty, so a file mode is
 * taken as it was written.
 */
function toValue(doc: Document, name: string): unknown {
  let value: unknown;
  try {
    value = doc.toJS() ?? {};
  } catch (cause) {
    // Aliases that multiply, or that name nothing.
    throw new ConfigError(name, `not YAML: ${messageOf(cause)}`, { cause });
  }
  if (!isRecord(value)) return value;
  const modes: PropertyKey[][] = [['control', 'mode']];
  const ports = Array.isArray(value.ports) ? value.ports : [];
  for (const i of ports.keys()) modes.push(['ports', i, 'socketMode']);
  const disks = Array.isArray(value.disks) ? value.disks : [];
  for (const i of disks.keys()) modes.push(['disks', i, 'socketMode']);
  const adapters = Array.isArray(value.scsi) ? value.scsi : [];
  for (const i of adapters.keys()) modes.push(['scsi', i, 'socketMode']);
  for (const keys of modes) {
    const node = doc.getIn(keys as unknown[], true);
    if (!isScalar(node) || typeof node.value !== 'number' || node.source === undefined) continue;
    const holder = keys.slice(0, -1).reduce<unknown>((at, k) => (at as never)[k], value);
    (holder as Record<PropertyKey, unknown>)[keys.at(-1)!] = node.source;
  }
  return value;
}

/** `line:column` of a key or value; of what holds it when it is missing. */
function positionOf(doc: Document, lines: LineCounter, raw: RawProblem): string {
  for (let depth = raw.keys.length; depth >= 0; depth--) {
    const keys = raw.keys.slice(0, depth);
    const offset = raw.atKey ? keyOffset(doc, keys) : nodeOffset(doc, keys);
    if (offset === null) continue;
    const { line, col } = lines.linePos(offset);
    return `${line}:${col}`;
  }
  return '1:1';
}

function nodeOffset(doc: Document, keys: readonly PropertyKey[]): number | null {
  const node = keys.length === 0 ? doc.contents : doc.getIn(keys as unknown[], true);
  return (node as { range?: [number] } | null | undefined)?.range?.[0] ?? null;
}

function keyOffset(doc: Document, keys: readonly PropertyKey[]): number | null {
  const parent = keys.length <= 1 ? doc.contents : doc.getIn(keys.slice(0, -1) as unknown[], true);
  if (!isMap(parent)) return null;
  const pair = parent.items.find((item) => isScalar(item.key) && item.key.value === keys.at(-1));
  return (pair?.key as { range?: [number] } | undefined)?.range?.[0] ?? null;
}

/** Everything but the ports. */
function resolveSwitch(
  input: SwitchInput,
  place: (raw: RawProblem) => ConfigProblem,
  sources: ConfigSources,
  problems: ConfigProblem[],
): Omit<SwitchConfig, 'ports' | 'disks' | 'scsi'> {
  const report = (keys: readonly PropertyKey[], problem: string) => {
    const fromFlag = keys.join('.') === 'http' ? sources.http : sources.control;
    if (fromFlag === undefined) problems.push(place({ keys, problem }));
    else problems.push(flagProblem(keys.join('.'), problem));
  };
  checkSocketPath(input.control.path, ['control', 'path'], report);
  let owner = null;
  if (input.control.owner !== undefined) {
    const found = resolveOwner(input.control.owner, sources.accounts);
    if (typeof found === 'string')
      problems.push(place({ keys: ['control', 'owner'], problem: found }));
    else owner = found;
  }
  if (input.http !== null && Number(/\d+$/.exec(input.http)?.[0]) > 65535) {
    report(['http'], `${JSON.stringify(input.http)} has no port from 0 to 65535`);
  }
  const workers = sources.workers ?? input.workers;
  const workerCores = sources.workerCores ?? input.workerCores;
  for (const { at, problem } of workerCores === null ? [] : coreProblems(workerCores, workers)) {
    const keys = ['workerCores', ...(at === null ? [] : [at])];
    if (sources.workerCores === undefined) problems.push(place({ keys, problem }));
    else problems.push({ path: '--worker-cores', problem, position: null });
  }
  return {
    control: { path: input.control.path, mode: parseFileMode(input.control.mode), owner },
    http: input.http,
    stateFile: input.stateFile ?? null,
    mac: input.mac,
    spinMicroseconds: input.spinMicroseconds,
    policy: input.policy,
    workers,
    workerCores,
  };
}
