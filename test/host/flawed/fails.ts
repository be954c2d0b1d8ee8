/** One test passes, one fails: is it told apart from a file whose tests all pass? */
import { equal } from 'node:assert/strict';
import { test } from 'node:test';

test('one is one', () => equal(1, 1));
test('one is two', () => equal(1, 2));
