/**
 * `vring vdpa` as a user types it: a simulated card from first to last, and what is wrong.
 *
 * @test-host alone long
 */
import { equal, match, ok, rejects } from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadModules, run, unloadModules, waitForPath } from './inside.ts';

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
const MAC = '52:54:00:00:00:01';

const vdpa = (...words: string[]): Promise<string> =>
  run(process.execPath, [MAIN, 'vdpa', ...words]);

async function json<T>(...words: string[]): Promise<T> {
  return JSON.parse(await vdpa(...words, '--json')) as T;
}

type Listed = { name: string; driver: string | null; node: string | null };

test('a simulated card: made, shown, given to both drivers, deleted', async () => {
  await loadModules('vdpa_sim_net', 'vhost_vdpa', 'virtio_vdpa', 'virtio_net');
  const makers = await json<{ name: string }[]>('mgmt');
  ok(makers.some((maker) => maker.name === 'vdpasim_net'));
  await vdpa('add', 'sim0', '--mgmtdev', 'vdpasim_net', '--mac', MAC);
  match(await vdpa('show', 'sim0'), new RegExp(MAC));
  await vdpa('bind', 'sim0', 'vhost');
  const [bound] = await json<Listed[]>('list');
  equal(bound!.name, 'sim0');
  equal(bound!.driver, 'vhost_vdpa');
  await waitForPath(bound!.node!);
  await vdpa('bind', 'sim0', 'virtio');
  match(await run('ip', ['-o', 'link']), new RegExp(MAC), "the kernel's own card");
  await rejects(vdpa('add', 'sim0', '--mgmtdev', 'vdpasim_net'), /sim0/);
  await vdpa('delete', 'sim0');
  ok(!existsSync('/sys/bus/vdpa/devices/sim0'));
  equal((await json<Listed[]>('list')).length, 0);
});

test('what is wrong is said with what to do', async () => {
  await rejects(vdpa('delete', 'nobody'), /nobody/);
  await rejects(vdpa('add', 'x', '--mgmtdev', 'no_such'), /no_such/);
  await unloadModules('virtio_vdpa', 'vhost_vdpa', 'vdpa_sim_net', 'vdpa_sim', 'vdpa');
  await rejects(vdpa('list'), /modprobe/);
});
