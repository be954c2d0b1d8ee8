/**
 * The generated parts of docs/config.md, docs/api.md and docs/metrics.md: tables of keys, routes
 * and metrics, each between two markers. Tests hold that they are current. To renew:
 * `node src/daemon/reference-docs.ts`.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { ROUTES } from './api-routes.ts';
import { schemaText, SCHEMA_FILE, switchJsonSchema, type JsonNode } from './config-schema.ts';
import { metricList } from './metric-table.ts';

const docs = new URL('../../docs/', import.meta.url);

/** Each document and what is generated into it. */
export const REFERENCE_DOCS: readonly { file: string; generate: () => string }[] = [
  { file: fileURLToPath(new URL('config.md', docs)), generate: configTables },
  { file: fileURLToPath(new URL('api.md', docs)), generate: routeTable },
  { file: fileURLToPath(new URL('metrics.md', docs)), generate: metricTable },
];

const BEGIN = '<!-- generated: node src/daemon/reference-docs.ts -->';
const END = '<!-- end of generated part -->';

/** The document with its generated part renewed. */
export function renewed(doc: string, generated: string): string {
  const begin = doc.indexOf(BEGIN);
  const end = doc.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`the document lacks ${BEGIN} or ${END}`);
  return `${doc.slice(0, begin + BEGIN.length)}\n\n${generated}\n${doc.slice(end)}`;
}

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [head, head.map(() => '---'), ...rows];
  return `${lines.map((row) => `| ${row.map(cell).join(' | ')} |`).join('\n')}\n`;
}

function metricTable(): string {
  const rows = metricList().map(({ name, type, labels, help }) => [
    `\`${name}\``,
    type,
    labels === '' ? '' : `\`${labels}\``,
    help,
  ]);
  return markdownTable(['metric', 'type', 'labels', 'meaning'], rows);
}

function routeTable(): string {
  const rows = ROUTES.map((route) => {
    const query = Object.keys(route.query?.shape ?? {});
    const path = `${route.path}${query.length === 0 ? '' : `?${query.join('=&')}=`}`;
    const statuses = [...Object.keys(route.answers), ...(route.errors ?? [])].join(', ');
    const where = route.socketOnly ? 'socket' : 'socket, TCP';
    return [`\`${route.method} ${path}\``, where, statuses, route.summary];
  });
  return markdownTable(['request', 'served on', 'status', 'meaning'], rows);
}

/** Tables of every key, with what it takes, its default and its meaning. */
function configTables(): string {
  const schema = switchJsonSchema() as JsonNode;
  const [vhostUser, tap, packet, xdp, vduse] = schema.properties?.ports?.items?.oneOf ?? [];
  const shared = new Set(Object.keys(tap?.properties ?? {}));
  for (const own of ['kind', 'interface', 'queues']) shared.delete(own);
  const only = (node: JsonNode | undefined, keep: (key: string) => boolean): JsonNode => ({
    ...node,
    properties: Object.fromEntries(
      Object.entries(node?.properties ?? {}).filter(([key]) => keep(key)),
    ),
  });
  return [
    section('The switch', schema),
    section(
      'Every port',
      only(vhostUser, (key) => shared.has(key)),
    ),
    section(
      'Ports of kind `vhost-user`',
      only(vhostUser, (key) => !shared.has(key)),
    ),
    section(
      'Ports of kind `tap`',
      only(tap, (key) => !shared.has(key)),
    ),
    section(
      'Ports of kind `packet`',
      only(packet, (key) => !shared.has(key)),
    ),
    section(
      'Ports of kind `xdp`',
      only(xdp, (key) => !shared.has(key)),
    ),
    section(
      'Ports of kind `vduse`',
      only(vduse, (key) => !shared.has(key)),
    ),
    section('Every disk', schema.properties?.disks?.items ?? {}),
    section('Every SCSI adapter', schema.properties?.scsi?.items ?? {}),
    section('Every unit of one', schema.properties?.scsi?.items?.properties?.units?.items ?? {}),
  ].join('\n');
}

function section(title: string, node: JsonNode): string {
  const head = ['key', 'takes', 'default', 'meaning'];
  return `### ${title}\n\n${markdownTable(head, rowsOf(node, '', ''))}`;
}

function rowsOf(node: JsonNode, prefix: string, note: string): string[][] {
  const rows: string[][] = [];
  for (const [key, field] of Object.entries(node.properties ?? {})) {
    const name = `${prefix}${key}`;
    const isRequired = node.required?.includes(key) && field.default === undefined;
    const fallback = isRequired ? '(required)' : defaultText(field.default);
    rows.push([`\`${name}\`${note}`, takes(field), fallback, field.description ?? '']);
    const mapping = [field, ...(field.anyOf ?? [])].find((n) => n.type === 'object');
    if (mapping !== undefined) rows.push(...rowsOf(mapping, `${name}.`, ''));
    for (const inner of field.anyOf?.flatMap((n) => n.oneOf ?? []) ?? []) {
      const { mode, ...rest } = inner.properties ?? {};
      const part = { ...inner, properties: rest };
      rows.push(...rowsOf(part, `${name}.`, ` (${String(mode?.const)})`));
    }
  }
  return rows;
}

function defaultText(value: unknown): string {
  if (value === undefined) return '';
  const isEmpty = typeof value === 'object' && value !== null && Object.keys(value).length === 0;
  return isEmpty ? '' : `\`${JSON.stringify(value)}\``;
}

function takes(node: JsonNode): string {
  if (node.const !== undefined) return `\`${String(node.const)}\``;
  if (node.enum) return node.enum.map((value) => `\`${String(value)}\``).join(' or ');
  const branches = node.anyOf ?? node.oneOf;
  if (branches) return [...new Set(branches.map(takes))].join(' or ');
  if (node.type === 'integer') return `${node.minimum} to ${node.maximum}`;
  if (node.type === 'array')
    return `list of ${node.items?.oneOf ? 'ports' : takes(node.items ?? {})}`;
  if (node.type === 'object') return 'mapping';
  if (node.type === 'boolean') return '`true` or `false`';
  return Array.isArray(node.type) ? 'octal digits' : (node.type ?? 'any');
}

if (import.meta.main) {
  writeFileSync(SCHEMA_FILE, schemaText());
  for (const { file, generate } of REFERENCE_DOCS) {
    writeFileSync(file, renewed(readFileSync(file, 'utf8'), generate()));
  }
}
