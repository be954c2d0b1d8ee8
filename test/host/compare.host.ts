/**
 * `vring compare` over every path, the kernel's among them; its page is what a user would read.
 * The figures are of an emulated machine, and the report has to say so.
 *
 * @test-host cards=vp-vdpa-pair time-limit=400 alone long
 */
import { equal, match, ok } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Comparison, PathId } from '../../src/compare/index.ts';
import { kernelDeviceOf, loadModules, run, sh, vhostVdpaPath } from './inside.ts';
import { VP_VDPA_PAIR } from './machine-command.ts';
import { releaseVpVdpaCard, takeVpVdpaCard } from './vp-vdpa-card.ts';

const VRING = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
const ALL: readonly PathId[] = [
  'in-process',
  'vhost-net',
  'vhost-user',
  'vdpa-vduse',
  'vdpa-sim',
  'vdpa-device',
];

async function compare(...words: string[]): Promise<Comparison> {
  const options = { timeoutMs: 350_000 };
  const short = ['--rounds', '1', '--seconds', '1', '--trips', '30', '--quiet', '--json'];
  const output = await run(process.execPath, [VRING, 'compare', ...short, ...words], options);
  return JSON.parse(output) as Comparison;
}

test('without modules every kernel path names the one that brings it', async () => {
  const { paths } = await compare('--only', 'vhost-net', 'vdpa-vduse', 'vdpa-sim');
  equal(paths.length, 3);
  for (const path of paths) {
    match(path.missing ?? '', /modprobe (vhost_net|vduse|vdpa_sim_net)/, path.id);
    equal(path.summary, null);
  }
});

test('every path of the article, and the three kinds of vDPA, carry the workload', async (t) => {
  await loadModules('tun', 'vhost_net', 'vduse', 'vdpa_sim_net', 'vhost_vdpa');
  await loadModules('sch_ingress', 'cls_u32', 'act_mirred');
  await sh('mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing');
  const name = await takeVpVdpaCard('vhost_vdpa');
  t.after(() => releaseVpVdpaCard(name));
  await loadModules('virtio_net');
  const far = await kernelDeviceOf(`/sys/bus/pci/devices/${VP_VDPA_PAIR.peer.pci}`, 'net');
  await sh(`ip link set ${far} promisc on up`);
  const page = '/tmp/compare.html';
  const device = `${await vhostVdpaPath(name)}=${far}`;
  const comparison = await compare('--html', page, '--vdpa', device);

  equal(comparison.machine.emulated, true);
  for (const id of ALL) {
    const path = comparison.paths.find((each) => each.id === id)!;
    equal(path.missing ?? path.failure, null, id);
    for (const size of path.summary!.sizes) {
      const what = `${id}, ${size.sizeBytes} bytes`;
      equal(size.corrupt, 0, what);
      ok(size.framesPerSecond.median > 0, what);
      ok(size.lost < size.sent / 10, `${what}: ${size.lost} of ${size.sent} lost`);
      ok(size.cpuNsPerFrame.median > 0, what);
      ok((size.systemCallsPerFrame?.median ?? -1) > 0, `${what}: system calls are counted`);
    }
    ok(path.summary!.roundTripUs.median > 0, id);
  }
  const html = readFileSync(page, 'utf8');
  match(html, /EMULATED MACHINE/);
  for (const { description } of comparison.paths) {
    const { framesPerSecond } = comparison.paths.find((each) => each.description === description)!
      .summary!.sizes[0]!;
    t.diagnostic(`${description.name}: ${(framesPerSecond.median / 1000).toFixed(1)} kframes/s`);
  }
  // Kernel threads did the work of vhost-net, and ours that of vhost-user: both were told apart.
  for (const id of ['vhost-net', 'vhost-user', 'vdpa-vduse'] as const) {
    const [size] = comparison.paths.find((each) => each.id === id)!.summary!.sizes;
    ok((size!.deviceCpuNsPerFrame?.median ?? 0) > 0, `${id}: the device's processor time`);
  }
});
