/** A test that never ends, and that its timer keeps alive. */
import { test } from 'node:test';

test('something that never comes', () => new Promise(() => setInterval(() => {}, 1000)));
