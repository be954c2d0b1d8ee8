/**
 * Writes docs/protocol.md: every message of vhost-user, its payload, fds, reply, gate and rules, as
 * `src/vhost-user/message-table.ts` has them. Never edited by hand; test/protocol-docs.test.ts
 * holds that it is current. To renew: `npm run docs`.
 */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { BACKEND_PROTOCOL_FEATURES, OPT_IN_FEATURES } from '../src/vhost-user/offered-features.ts';
import { handlerOf } from '../src/vhost-user/backend-dispatch.ts';
import { FRONTEND_PROTOCOL_FEATURES } from '../src/vhost-user/frontend-features.ts';
import {
  BACK_END_MESSAGES,
  FRONT_END_MESSAGES,
  type MessageEntry,
} from '../src/vhost-user/message-table.ts';
import { ENABLE_TRANSITIONS, RUN_TRANSITIONS } from '../src/vhost-user/ring-states.ts';
import { STATE_RULES } from '../src/vhost-user/state-rules.ts';
import type { AnyStruct } from '../src/wire/struct.ts';
import type { PayloadRule } from '../src/wire/vhost-user-parse.ts';
import * as wire from '../src/wire/vhost-user.ts';

export const PROTOCOL_DOC = fileURLToPath(new URL('../docs/protocol.md', import.meta.url));

const INTRODUCTION = `# The vhost-user protocol

Generated from \`src/vhost-user/message-table.ts\` by \`npm run docs\`; the sessions of both
sides, the recorder, the fuzzer and the conformance runner read the same table. Sections are those
of the specification, QEMU's \`docs/interop/vhost-user.rst\`. Numbers are little-endian on all
hosts that vring supports.

## Header

In front of every payload, 12 bytes. fds come with its first byte.

| offset | bytes | field | |
|---|---|---|---|
| 0 | 4 | request | the id below |
| 4 | 4 | flags | bits 0-1 version, always 1; bit 2 reply; bit 3 need_reply; others 0 |
| 8 | 4 | size | bytes of payload |

A message without a reply of its own is acked by a u64, zero for success, if \`need_reply\` is set
and REPLY_ACK was negotiated. A message that breaks a rule is answered so with a non-zero ack, else
it ends the session; the reason names the rule.
`;

type Row = readonly string[];

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function table(head: Row, rows: readonly Row[]): string {
  const lines = [head, head.map(() => '---'), ...rows];
  return `${lines.map((row) => `| ${row.map(cell).join(' | ')} |`).join('\n')}\n`;
}

const featureName = (bit: number): string => wire.PROTOCOL_FEATURE_NAMES[bit] ?? `bit ${bit}`;
const has = (bits: bigint, bit: number): boolean => ((bits >> BigInt(bit)) & 1n) === 1n;

/** Whether a session of ours offers a feature, and what a target must do for it. */
function offered(bit: number): string {
  if (has(BACKEND_PROTOCOL_FEATURES, bit)) return 'every device whose target has the bit';
  if (OPT_IN_FEATURES.has(bit)) return 'devices that implement it';
  return 'never';
}

function isHandled(entry: MessageEntry): boolean {
  try {
    return handlerOf(entry.id) !== null;
  } catch {
    return false;
  }
}

/** Offsets of every field; \`each\` repeats, \`tail\` is the device's. */
function layoutTable({ layout, minBytes, maxBytes }: PayloadRule<unknown>): string {
  const { head, each, tail } = layout;
  const rows: Row[] = [];
  const add = (shape: AnyStruct, base: number, prefix: string): void => {
    for (const [name, field] of Object.entries(shape.fields)) {
      rows.push([`${prefix}${base + field.at}`, String(field.bytes), name]);
    }
  };
  if (head !== undefined) add(head, 0, '');
  const end = head?.size ?? 0;
  if (each !== undefined) {
    rows.push([`${end}`, `${each.size} each`, `\`${each.name}\`, repeated:`]);
    add(each, 0, '+');
  }
  if (tail !== undefined) rows.push([String(end), `up to ${maxBytes - end}`, tail]);
  const size = minBytes === maxBytes ? `${minBytes} bytes` : `${minBytes} to ${maxBytes} bytes`;
  const name = head === undefined ? '' : ` \`${head.name}\``;
  if (rows.length === 0) return maxBytes === 0 ? 'nothing' : `${size}, no meaning`;
  return `${size}${name}\n\n${table(['offset', 'bytes', 'field'], rows)}`;
}

function range([min, max]: MessageEntry['fds'], what: string): string {
  if (max === 0) return 'none';
  const count = min === max ? String(min) : `${min} to ${max}`;
  return what === '' ? count : `${count}: ${what}`;
}

function replyText(entry: MessageEntry): string {
  const fds = entry.replyFds[1] > 0 ? `, fds: ${range(entry.replyFds, '')}` : '';
  if (entry.reply === 'payload') return `always, ${entry.replyPayload?.shape}${fds}`;
  return entry.reply === 'both' ? 'always, an ack' : 'an ack if asked for';
}

/** What must have been negotiated. */
function gate({ needs, needsVirtio }: MessageEntry): string {
  const parts: string[] = [];
  if (needs !== null) parts.push(`${featureName(needs)} (protocol feature ${needs})`);
  if (needsVirtio !== null) parts.push(`virtio feature bit ${needsVirtio}`);
  return parts.length === 0 ? 'nothing' : parts.join(', ');
}

function legalText(entry: MessageEntry): string {
  if (entry.legal.length === 0) return 'at any time';
  return entry.legal.map(({ id, says }) => `\`${id}\`: ${says}`).join('; ');
}

const anchor = (name: string): string => `#${name.toLowerCase()}`;

function overview(entries: readonly MessageEntry[]): string {
  return table(
    ['id', 'message', 'does', 'payload', 'fds', 'reply', 'needs'],
    entries.map((entry) => [
      String(entry.id),
      `[${entry.name}](${anchor(entry.name)})`,
      entry.does,
      entry.payload.shape,
      range(entry.fds, ''),
      entry.reply === 'ack' ? 'ack' : entry.reply === 'both' ? 'ack always' : 'own',
      [
        entry.needs === null ? '' : featureName(entry.needs),
        entry.needsVirtio === null ? '' : `bit ${entry.needsVirtio}`,
      ]
        .filter(Boolean)
        .join(', '),
    ]),
  );
}

function messageText(entry: MessageEntry): string {
  const isRequest = entry.sender === 'front-end';
  const facts: Row[] = [
    ['id', String(entry.id)],
    ['sender', isRequest ? 'front-end' : 'back-end, on the backend channel'],
    ['does', entry.does],
    ['fds', range(entry.fds, entry.fdsAre)],
    ['reply', replyText(entry)],
    ['needs', gate(entry)],
    ['legal', legalText(entry)],
  ];
  if (isRequest) facts.push(['session', isHandled(entry) ? 'implemented' : 'refused by name']);
  if (entry.needs !== null) facts.push(['offered by', offered(entry.needs)]);
  facts.push(['sections', entry.sections.join(', ')]);
  const parts = [`### ${entry.name}\n`, table(['', ''], facts)];
  parts.push(`Payload: ${layoutTable(entry.payload)}`);
  if (entry.replyPayload !== null && entry.replyPayload !== entry.payload) {
    parts.push(`Reply: ${layoutTable(entry.replyPayload)}`);
  }
  return parts.join('\n');
}

function featureTable(): string {
  const entries = [...FRONT_END_MESSAGES.values(), ...BACK_END_MESSAGES.values()];
  return table(
    ['bit', 'protocol feature', 'messages that need it', 'offered by', 'our front-end'],
    wire.PROTOCOL_FEATURE_NAMES.map((name, bit) => [
      String(bit),
      name,
      entries
        .filter(({ needs }) => needs === bit)
        .map((entry) => entry.name.replace('VHOST_USER_', ''))
        .join(', '),
      offered(bit),
      has(FRONTEND_PROTOCOL_FEATURES, bit) ? 'uses it' : 'never acks it',
    ]),
  );
}

function rulesTable(): string {
  const entries = [...FRONT_END_MESSAGES.values(), ...BACK_END_MESSAGES.values()];
  return table(
    ['rule', 'says', 'messages', 'section'],
    STATE_RULES.map(({ id, says, section }) => [
      `\`${id}\``,
      says,
      entries
        .filter(({ legal }) => legal.some((each) => each.id === id))
        .map((entry) => entry.name.replace('VHOST_USER_', ''))
        .join(', '),
      section,
    ]),
  );
}

function ringStates(): string {
  const runs = RUN_TRANSITIONS.map(({ from, event, to, says }) => [from, event, to, says]);
  const enables = ENABLE_TRANSITIONS.map(({ event, to }) => [event, to]);
  return [
    'Whether a vring runs:\n',
    table(['from', 'event', 'to', 'because'], runs),
    'And whether it is enabled, which is another matter:\n',
    table(['event', 'to'], enables),
  ].join('\n');
}

/** The whole document. */
export function protocolDoc(): string {
  const front = [...FRONT_END_MESSAGES.values()];
  const back = [...BACK_END_MESSAGES.values()];
  return [
    INTRODUCTION,
    '## Protocol features\n',
    featureTable(),
    '## Rules of state\n',
    'Whatever else is legal at any time. A message that breaks one is refused with its name.\n',
    rulesTable(),
    '## States of a vring\n',
    ringStates(),
    `## Messages of the front-end (${front.length})\n`,
    overview(front),
    `## Messages of the back-end (${back.length})\n`,
    overview(back),
    '## Every message\n',
    ...[...front, ...back].map(messageText),
  ]
    .join('\n')
    .replace(/\n{3,}/g, '\n\n')
    .trimEnd()
    .concat('\n');
}

if (import.meta.main) writeFileSync(PROTOCOL_DOC, protocolDoc());
