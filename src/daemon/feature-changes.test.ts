import { deepEqual } from 'node:assert/strict';
import { test } from 'node:test';
import { featureChanges } from './feature-changes.ts';

test('what differs is named, with the side that has it', () => {
  const before = { features: (1n << 15n) | (1n << 32n), protocolFeatures: 1n << 3n };
  const now = { features: (1n << 34n) | (1n << 32n), protocolFeatures: (1n << 3n) | (1n << 16n) };
  deepEqual(featureChanges(before, now), ['+RING_PACKED', '-MRG_RXBUF', '+protocol STATUS']);
  deepEqual(featureChanges(now, now), []);
});
