/** `vring vm PORT --run` as a user types it: a guest in the foreground, its console ours. */
import { equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/index.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

test('a guest of our own making on a port, from its console to its end', async (t) => {
  if (!requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox')) return;
  await using scratch = new Scratch();
  const control = scratch.path('control');
  const ports = [`vm0=vhost-user:${scratch.path('vm0')}`];
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control }));
  const words = ['vm', 'vm0', '--control', control, '--memory', '192', '--accel', 'tcg'];
  words.push('--run', '--demo-guest', '--ip', '10.0.0.7/24');
  const child = startChild(process.execPath, [MAIN, ...words], { stdio: ['pipe', 'pipe', 'pipe'] });
  scratch.own({ close: () => endChild(child) });
  const output = new OutputTail();
  child.stdout?.setEncoding('utf8').on('data', (text: string) => output.append(text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => output.append(text));

  await waitFor('the shell of the guest', 60_000, () => output.text.includes('/root #'));
  await vswitch.waitState('vm0', 'up');
  child.stdin?.write('ip addr show eth0; uname -n\n');
  await waitFor('an answer', 10_000, () => /^vm0\r?$/m.test(output.text));
  match(output.text, /inet 10\.0\.0\.7\/24/);
  child.stdin?.write('poweroff -f\n');
  equal((await childExit(child)).code, 0);
  await vswitch.waitState('vm0', 'listening');
});
