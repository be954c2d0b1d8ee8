/** docs/protocol.md is what the table says, and complete. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { PROTOCOL_DOC, protocolDoc } from '../scripts/protocol-docs.ts';
import { BACK_END_MESSAGES, FRONT_END_MESSAGES } from '../src/vhost-user/message-table.ts';
import { STATE_RULES } from '../src/vhost-user/state-rules.ts';
import { PROTOCOL_FEATURE_NAMES } from '../src/wire/vhost-user.ts';

test('docs/protocol.md is current: npm run docs', () => {
  assert.equal(readFileSync(PROTOCOL_DOC, 'utf8'), protocolDoc());
});

test('docs/protocol.md has every message, feature and rule', () => {
  const doc = readFileSync(PROTOCOL_DOC, 'utf8');
  const messages = [...FRONT_END_MESSAGES.values(), ...BACK_END_MESSAGES.values()];
  assert.equal(messages.length, 54);
  for (const { name } of messages) assert.ok(doc.includes(`\n### ${name}\n`), name);
  for (const { id, says } of STATE_RULES) assert.ok(doc.includes(`| \`${id}\` | ${says}`), id);
  for (const [bit, name] of PROTOCOL_FEATURE_NAMES.entries()) {
    assert.ok(doc.includes(`\n| ${bit} | ${name} |`), name);
  }
});
