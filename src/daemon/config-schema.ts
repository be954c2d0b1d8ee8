/**
 * The JSON Schema of the configuration, for editors, and the field tables of docs/config.md. Both
 * are generated from the zod schemas and committed; tests hold that they are current. To renew:
 * `node src/daemon/config-schema.ts`.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as z from 'zod';
import { SwitchInput } from './port-input.ts';

const root = new URL('../../', import.meta.url);
export const SCHEMA_FILE = fileURLToPath(new URL('schema/switch.schema.json', root));
export const CONFIG_DOC_FILE = fileURLToPath(new URL('docs/config.md', root));

type Node = {
  type?: string | string[];
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  maxItems?: number;
  properties?: Record<string, Node>;
  required?: string[];
  anyOf?: Node[];
  oneOf?: Node[];
  items?: Node;
};

/** Draft 7: what the YAML language servers of editors understand best. */
export function switchJsonSchema(): Record<string, unknown> {
  const schema = z.toJSONSchema(SwitchInput, { io: 'input', target: 'draft-7' });
  return {
    $schema: schema.$schema,
    title: 'Configuration of a vring switch',
    description: 'Read by `vring switch --config FILE`.',
    ...schema,
  };
}

export function schemaText(): string {
  return `${JSON.stringify(switchJsonSchema(), null, 2)}\n`;
}

const BEGIN = '<!-- fields: generated from the schema -->';
const END = '<!-- end of fields -->';

/** The document with its generated part renewed. */
export function renewConfigDoc(doc: string): string {
  const begin = doc.indexOf(BEGIN);
  const end = doc.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`docs/config.md lacks ${BEGIN} or ${END}`);
  return `${doc.slice(0, begin + BEGIN.length)}\n\n${fieldTables()}\n${doc.slice(end)}`;
}

/** Tables of every key, with what it takes, its default and its meaning. */
export function fieldTables(): string {
  const schema = switchJsonSchema() as Node;
  const portKinds = schema.properties?.ports?.items?.oneOf ?? [];
  const [vhostUser, tap] = portKinds;
  const shared = new Set(Object.keys(tap?.properties ?? {}).filter((k) => k !== 'kind'));
  shared.delete('interface');
  const only = (node: Node | undefined, keep: (key: string) => boolean): Node => ({
    ...node,
    properties: Object.fromEntries(
      Object.entries(node?.properties ?? {}).filter(([key]) => keep(key)),
    ),
  });
  return [
    section('The switch', schema),
    section('Every port', only(vhostUser, (key) => shared.has(key))),
    section('Ports of kind `vhost-user`', only(vhostUser, (key) => !shared.has(key))),
    section('Ports of kind `tap`', only(tap, (key) => !shared.has(key))),
  ].join('\n');
}

function section(title: string, node: Node): string {
  const rows = rowsOf(node, '');
  const head = '| key | takes | default | meaning |\n|---|---|---|---|\n';
  return `### ${title}\n\n${head}${rows.join('\n')}\n`;
}

function rowsOf(node: Node, prefix: string): string[] {
  const rows: string[] = [];
  for (const [key, field] of Object.entries(node.properties ?? {})) {
    const name = `${prefix}${key}`;
    const isRequired = node.required?.includes(key) && field.default === undefined;
    const fallback = isRequired ? '(required)' : defaultText(field.default);
    const meaning = (field.description ?? '').replaceAll('|', '\\|');
    rows.push(`| \`${name}\` | ${takes(field).replaceAll('|', '\\|')} | ${fallback} | ${meaning} |`);
    if (field.type === 'object') rows.push(...rowsOf(field, `${name}.`));
    for (const inner of field.anyOf?.flatMap((n) => n.oneOf ?? []) ?? []) {
      const mode = String(inner.properties?.mode?.const);
      const { mode: _, ...rest } = inner.properties ?? {};
      const part = { ...inner, properties: rest };
      rows.push(...rowsOf(part, `${name}.`).map((row) => row.replace('` |', `\` (${mode}) |`)));
    }
  }
  return rows;
}

function defaultText(value: unknown): string {
  if (value === undefined) return '';
  const isEmpty = typeof value === 'object' && value !== null && Object.keys(value).length === 0;
  return isEmpty ? '' : `\`${JSON.stringify(value)}\``;
}

function takes(node: Node): string {
  if (node.const !== undefined) return `\`${String(node.const)}\``;
  if (node.enum) return node.enum.map((value) => `\`${String(value)}\``).join(' or ');
  const branches = node.anyOf ?? node.oneOf;
  if (branches) return [...new Set(branches.map(takes))].join(' or ');
  if (node.type === 'integer') return `${node.minimum} to ${node.maximum}`;
  if (node.type === 'array') return `list of ${node.items?.oneOf ? 'ports' : takes(node.items ?? {})}`;
  if (node.type === 'object') return 'mapping';
  if (node.type === 'boolean') return '`true` or `false`';
  return Array.isArray(node.type) ? 'octal digits' : (node.type ?? 'any');
}

if (import.meta.main) {
  writeFileSync(SCHEMA_FILE, schemaText());
  writeFileSync(CONFIG_DOC_FILE, renewConfigDoc(readFileSync(CONFIG_DOC_FILE, 'utf8')));
}
