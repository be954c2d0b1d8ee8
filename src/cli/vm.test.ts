import { deepEqual, equal, match } from 'node:assert/strict';
import { execFile, type ExecFileException } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('./main.ts', import.meta.url));

type Result = { status: number; stdout: string; stderr: string };

function vring(...args: string[]): Promise<Result> {
  return new Promise((resolve) => {
    const done = (error: ExecFileException | null, stdout: string, stderr: string): void => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    };
    execFile(process.execPath, [MAIN, ...args], done);
  });
}

/** A switch that knows these ports and nothing else. */
async function fakeSwitch(t: TestContext, ports: Record<string, object>): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-vm-'));
  const server = createServer((request, response) => {
    const name = request.url?.replace('/v1/ports/', '') ?? '';
    const port = ports[name];
    response.statusCode = port === undefined ? 404 : 200;
    const error = { code: 'ERR_VRING_PORT_NOT_FOUND', message: `there is no port named "${name}"` };
    response.end(JSON.stringify(port ?? { error }));
  });
  const path = join(folder, 'control');
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  return path;
}

test('a socket alone is enough for a command line', async () => {
  const { status, stdout } = await vring('vm', '--socket', '/run/a.sock', '--disk', 'a.qcow2');
  equal(status, 0);
  match(stdout, /^qemu-system-x86_64 \\\n {2}-name vm0/);
  match(stdout, /path=\/run\/a\.sock,reconnect=1/);
  match(stdout, /format=qcow2,if=virtio/);
});

test('a port of the switch says the socket and who listens', async (t) => {
  const control = await fakeSwitch(t, {
    vm0: { kind: 'vhost-user', endpoint: '/run/vm0.sock', state: 'listening' },
    vm1: { kind: 'vhost-user', endpoint: '/run/vm1.sock,client', state: 'connecting' },
    up: { kind: 'tap', endpoint: 'tap0', state: 'up' },
  });
  const at = ['--control', control, '--json', '--kernel', '/boot/k'];
  const listening = JSON.parse((await vring('vm', 'vm0', ...at)).stdout);
  equal(listening.machine.name, 'vm0');
  deepEqual(
    [listening.machine.nics[0].path, listening.machine.nics[0].mode],
    ['/run/vm0.sock', 'client'],
  );
  const connecting = JSON.parse((await vring('vm', 'vm1', ...at)).stdout);
  deepEqual(
    [connecting.machine.nics[0].path, connecting.machine.nics[0].mode],
    ['/run/vm1.sock', 'server'],
  );
  const tap = await vring('vm', 'up', ...at);
  equal(tap.status, 2);
  match(tap.stderr, /port up is a tap port/);
  const absent = await vring('vm', 'vm9', ...at);
  equal(absent.status, 1);
  match(absent.stderr, /no port named "vm9"/);
});

test('an IOMMU, and how often QEMU looks for a port that went', async () => {
  const argv = ['--socket', '/run/a.sock', '--kernel', '/k', '--iommu', '--reconnect', '5'];
  const { stdout } = await vring('vm', ...argv, '--accel', 'tcg');
  match(stdout, /path=\/run\/a\.sock,reconnect=5/);
  match(stdout, /-device intel-iommu,intremap=off,device-iotlb=on/);
  match(stdout, /iommu_platform=on,ats=on,vectors=0/);
});

test('libvirt and Cloud Hypervisor forms', async () => {
  const xml = await vring('vm', '--socket', '/run/a.sock', '--libvirt', '--disk', '/a.img');
  match(xml.stdout, /<interface type='vhostuser'>/);
  const argv = ['--cloud-hypervisor', '--accel', 'kvm', '--queues', '2', '--kernel', '/k'];
  const { stdout } = await vring('vm', '--socket', '/run/a.sock', ...argv);
  match(stdout, /num_queues=4/);
});

test('what contradicts itself is refused with status 2', async () => {
  const refused: readonly (readonly [string[], RegExp])[] = [
    [[], /give either a port/],
    [['vm0', '--socket', '/a'], /give either a port/],
    [['vm0', '--server'], /--server belongs to --socket/],
    [['--socket', '/a', '--run', '--libvirt'], /choose one of/],
    [['--socket', '/a', '--ip', '10.0.0.1/24'], /--ip is for --demo-guest/],
    [['--socket', '/a', '--append', 'x'], /--append belongs to --kernel/],
    [['--socket', '/a', '--run'], /nothing to boot from/],
    [['--socket', '/a', '--queues', '0'], /queues: 0 is not 1/],
    [['--socket', '/a', '--memory', 'much'], /whole number/],
  ];
  for (const [args, expected] of refused) {
    const { status, stderr } = await vring('vm', ...args);
    equal(status, 2, `${args.join(' ')}: ${stderr}`);
    match(stderr, expected);
  }
});
