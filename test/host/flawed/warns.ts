/** All tests pass, but the kernel says that something is wrong; more so with the word `breaks`. */
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';

test('a line on the console as the kernel writes it', () => {
  writeFileSync('/dev/kmsg', '<4>WARNING: CPU: 0 PID: 1 at drivers/vdpa/vdpa_user/vduse_dev.c:1\n');
});
