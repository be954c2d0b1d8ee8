import { deepEqual, throws } from 'node:assert/strict';
import { test } from 'node:test';
import { parseFloor } from './ring-floor.ts';

test('a floor is read from its line', () => {
  const line = '{"ring":"split","bytes":64,"nsPerFrame":7.31,"framesPerRound":61.9}\n';
  deepEqual(parseFloor(line), { nsPerFrame: 7.31, framesPerRound: 61.9 });
});

test('a line without a figure is none', () => {
  throws(() => parseFloor('{"nsPerFrame":0,"framesPerRound":1}'), /two figures/);
  throws(() => parseFloor('{"nsPerFrame":1}'), /two figures/);
});
