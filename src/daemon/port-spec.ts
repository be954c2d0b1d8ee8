/**
 * Ports as one word of a command line:
 * `vm0=vhost-user:/run/vring/vm0.sock,queues=2,vlan=10` and `up=tap:tap0,trunk=all`.
 * The word becomes the same input that YAML and the API give, and passes the same schema.
 */
import { resolve } from 'node:path';
import { closest, describeIssues, type ConfigProblem, type RawProblem } from './config-problem.ts';
import { PortInput } from './port-input.ts';

/** For help texts and errors. */
export const PORT_SPEC_FORM =
  'NAME=vhost-user:PATH[,OPTION...], NAME=tap:INTERFACE[,OPTION...] (also packet: and xdp:) or ' +
  'NAME=vduse:DEVICE[,OPTION...]';

type Setter = (raw: Raw, value: string) => void;
type Raw = Record<string, unknown> & { offload?: Record<string, unknown> };
type Option = {
  /** Key of the input that it sets, for placing errors. */
  readonly key: string;
  readonly set: Setter;
  /** Works without `=VALUE`. */
  readonly flag?: boolean;
};

const number = (text: string): unknown => (/^\d{1,9}$/.test(text) ? Number(text) : text);
const onOff = (text: string): unknown => {
  if (text === 'on') return true;
  return text === 'off' ? false : text;
};
const plain = (key: string, read: (text: string) => unknown): Option => ({
  key,
  set: (raw, value) => (raw[key] = read(value)),
});
const offload = (name: string): Option => ({
  key: `offload.${name}`,
  set: (raw, value) => ((raw.offload ??= {})[name] = onOff(value)),
});

const OPTIONS: Readonly<Record<string, Option>> = {
  client: { key: 'mode', flag: true, set: (raw) => (raw.mode = 'client') },
  server: { key: 'mode', flag: true, set: (raw) => (raw.mode = 'server') },
  reflect: { key: 'reflect', flag: true, set: (raw) => (raw.reflect = true) },
  queues: {
    key: 'queuePairs',
    set: (raw, value) => {
      raw[raw['kind'] === 'vhost-user' ? 'queuePairs' : 'queues'] = number(value);
    },
  },
  vlan: plain('vlan', number),
  trunk: {
    key: 'vlan.allowed',
    set: (raw, value) => {
      const allowed = value === 'all' ? 'all' : value.split('+').map(number);
      raw.vlan = { ...(raw.vlan as object), mode: 'trunk', allowed };
    },
  },
  native: {
    key: 'vlan.native',
    set: (raw, value) => {
      raw.vlan = { ...(raw.vlan as object), native: value === 'none' ? null : number(value) };
    },
  },
  mode: {
    key: 'socketMode',
    set: (raw, value) => (raw[raw['kind'] === 'xdp' ? 'copyMode' : 'socketMode'] = value),
  },
  owner: plain('socketOwner', String),
  mtu: plain('mtu', number),
  packed: plain('packed', onOff),
  mrg: plain('mrgRxbuf', onOff),
  iommu: plain('iommu', onOff),
  postcopy: plain('postcopy', onOff),
  csum: offload('csum'),
  tso: offload('tso'),
  uso: offload('uso'),
  mac: plain('mac', String),
  bind: plain('bind', String),
  keep: plain('keep', onOff),
  attach: plain('attach', String),
  'qdisc-bypass': plain('qdiscBypass', onOff),
  'mac-limit': plain('macLimit', number),
  policy: plain('policy', String),
};

const KINDS = ['vhost-user', 'tap', 'packet', 'xdp', 'vduse'] as const;
type Kind = (typeof KINDS)[number];

const isKind = (text: string): text is Kind => (KINDS as readonly string[]).includes(text);

/** Options that not every kind of port has. */
const ONLY_OF: Readonly<Record<string, readonly Kind[]>> = {
  client: ['vhost-user'],
  server: ['vhost-user'],
  queues: ['vhost-user', 'tap', 'packet', 'xdp'],
  mode: ['vhost-user', 'xdp'],
  owner: ['vhost-user'],
  iommu: ['vhost-user'],
  postcopy: ['vhost-user'],
  packed: ['vhost-user', 'vduse'],
  mrg: ['vhost-user', 'vduse'],
  mac: ['vhost-user', 'vduse'],
  bind: ['vduse'],
  keep: ['vduse'],
  attach: ['xdp'],
  'qdisc-bypass': ['packet'],
};

const hasOption = (kind: Kind, name: string): boolean => ONLY_OF[name]?.includes(kind) ?? true;

/** Why a port of that kind has no such option, where people ask for it all the same. */
const WHY_NOT: Readonly<Record<string, string>> = {
  'vduse queues': 'VDUSE has no control queue, and without it a driver uses one pair of queues',
};

export type ParsedSpec =
  | { readonly input: PortInput; readonly problems: null }
  | { readonly input: null; readonly problems: readonly ConfigProblem[] };

/** Where a problem of this spec is: `--port vm0`. */
export function specPath(spec: string): string {
  const name = /^[^=,:]*/.exec(spec)?.[0] ?? '';
  return name === '' ? '--port' : `--port ${name}`;
}

/** A problem below a port, in the words of the command line. */
export function placeInSpec(spec: string, raw: RawProblem): ConfigProblem {
  const dotted = raw.keys.filter((key) => typeof key === 'string').join('.');
  const value = typeof raw.keys.at(-1) === 'number' ? 'trunk' : dotted;
  const option = optionOf(dotted) ?? value;
  const target = {
    path: 'PATH',
    interface: 'INTERFACE',
    device: 'DEVICE',
    name: 'NAME',
    kind: 'KIND',
  };
  const word = (target as Record<string, string>)[option] ?? option;
  const problem = word === '' ? raw.problem : `${word}: ${raw.problem}`;
  return { path: specPath(spec), problem: onOffWords(problem), position: null };
}

/** The command line says on and off where the schema says true and false. */
function onOffWords(problem: string): string {
  return problem.replace('is not true or false', 'is not on or off');
}

function optionOf(dottedKey: string): string | null {
  if (dottedKey === 'mode') return 'client';
  if (dottedKey === 'vlan.vid') return 'vlan';
  if (dottedKey === 'copyMode') return 'mode';
  for (const [name, option] of Object.entries(OPTIONS)) if (option.key === dottedKey) return name;
  return null;
}

/** Parses one `--port` word. Relative socket paths are made absolute here. */
export function parsePortSpec(spec: string): ParsedSpec {
  const fail = (problem: string): ParsedSpec => ({
    input: null,
    problems: [{ path: specPath(spec), problem, position: null }],
  });
  const [head = '', ...optionWords] = spec.split(',');
  const match = /^([^=]*)=([^:]*):(.*)$/s.exec(head);
  if (!match) return fail(`${JSON.stringify(head)} is not a port; write ${PORT_SPEC_FORM}`);
  const [, name, kind, target] = match as unknown as [string, string, string, string];
  if (!isKind(kind)) {
    const best = closest(kind, KINDS);
    const hint = best === null ? '' : `; did you mean "${best}"?`;
    return fail(`KIND: ${JSON.stringify(kind)} is not one of ${KINDS.join(', ')}${hint}`);
  }
  const raw: Raw = { name, kind };
  if (kind === 'tap' || kind === 'packet' || kind === 'xdp') raw.interface = target;
  else if (kind === 'vduse') raw.device = target;
  else raw.path = target === '' ? '' : resolve(target);
  const problem = readOptions(raw, kind, optionWords);
  if (problem !== null) return fail(problem);

  const parsed = PortInput.safeParse(raw, { reportInput: true });
  if (parsed.success) return { input: parsed.data, problems: null };
  const problems = describeIssues(parsed.error.issues).map((p) => placeInSpec(spec, p));
  return { input: null, problems };
}

/** Applies the options to `raw`. Returns the first problem, or null. */
function readOptions(raw: Raw, kind: Kind, words: readonly string[]): string | null {
  const seen = new Map<string, string>();
  for (const word of words) {
    const at = word.indexOf('=');
    const name = at < 0 ? word : word.slice(0, at);
    const option = Object.hasOwn(OPTIONS, name) ? OPTIONS[name] : undefined;
    if (!option) return unknownOption(name, kind);
    if (!hasOption(kind, name)) {
      const why = WHY_NOT[`${kind} ${name}`];
      const reason = why === undefined ? '' : ` (${why})`;
      const aKind = kind === 'xdp' ? 'an xdp' : `a ${kind}`;
      return `${name}: ${aKind} port has no such option${reason}; remove it`;
    }
    if (option.flag && at >= 0) return `${name}: takes no value; write just "${name}"`;
    if (!option.flag && at < 0) return `${name}: needs a value; write "${name}=..."`;
    const earlier = seen.get(option.key);
    if (earlier === name) return `${name}: given twice; remove one`;
    if (earlier !== undefined) return `${name}: contradicts ${earlier}; remove one`;
    seen.set(option.key, name);
    if (name !== 'vlan') option.set(raw, word.slice(at + 1));
  }
  const trunkOption = seen.has('vlan.allowed') ? 'trunk' : 'native';
  if (seen.has('vlan') && (seen.has('vlan.allowed') || seen.has('vlan.native'))) {
    return `${trunkOption}: contradicts vlan, which makes an access port; remove one`;
  }
  if (seen.has('vlan.native') && !seen.has('vlan.allowed')) {
    return 'native: belongs to a trunk; add trunk=all or trunk=VID+VID';
  }
  const vlan = words.find((word) => word.startsWith('vlan='));
  if (vlan !== undefined) raw.vlan = number(vlan.slice('vlan='.length));
  return null;
}

function unknownOption(name: string, kind: Kind): string {
  const known = Object.keys(OPTIONS).filter((n) => hasOption(kind, n));
  if (name === '') return 'there is an empty option; remove the extra comma';
  const best = closest(name, known);
  const hint = best === null ? `options are ${known.join(', ')}` : `did you mean "${best}"?`;
  return `${JSON.stringify(name)} is not an option; ${hint}`;
}
