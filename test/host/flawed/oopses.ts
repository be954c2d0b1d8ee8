/** The kernel dies under a test that would pass. */
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';

test('a crash', () => writeFileSync('/proc/sysrq-trigger', 'c'));
