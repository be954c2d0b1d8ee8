import { deepStrictEqual, ok, strictEqual } from 'node:assert';
import { test } from 'node:test';
import { formatMac, isMacText, parseMac } from './ethernet.ts';

test('MAC addresses as text and as bytes', () => {
  const bytes = parseMac('52:54:00:AB:cd:0f');
  deepStrictEqual(bytes, Uint8Array.of(0x52, 0x54, 0x00, 0xab, 0xcd, 0x0f));
  strictEqual(formatMac(bytes ?? new Uint8Array(6)), '52:54:00:ab:cd:0f');
  strictEqual(formatMac(Uint8Array.of(9, 9, 0, 1, 2, 3, 4, 5), 2), '00:01:02:03:04:05');
  for (const text of ['', '52:54:00:ab:cd', '52-54-00-ab-cd-0f', '52:54:00:ab:cd:0g', ' ']) {
    ok(!isMacText(text));
    strictEqual(parseMac(text), null);
  }
});
