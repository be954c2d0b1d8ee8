import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { type TestContext, test } from 'node:test';
import {
  addInterfaceAddress,
  interfaceMac,
  openFdCount,
  openTap,
  setInterfaceMtu,
  setInterfaceUp,
  setTapOffloads,
} from './index.ts';

function canTap(t: TestContext): boolean {
  if (process.getuid!() === 0 && existsSync('/dev/net/tun')) return true;
  t.skip('needs root and /dev/net/tun');
  return false;
}

test('a tap comes up with address and MTU, and goes with its fd', (t) => {
  if (!canTap(t)) return;
  const before = openFdCount();
  const { fd, name } = openTap('vrt%d', { vnetHdrBytes: 12 });
  assert.match(name, /^vrt\d+$/);
  assert.match(interfaceMac(name), /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
  setInterfaceMtu(name, 9000);
  addInterfaceAddress(name, '10.211.7.1/20');
  setInterfaceUp(name, true);
  const address = networkInterfaces()[name]?.find((entry) => entry.family === 'IPv4');
  assert.equal(address?.address, '10.211.7.1');
  assert.equal(address?.netmask, '255.255.240.0');
  setInterfaceUp(name, false);
  assert.throws(() => setInterfaceMtu(name, 1e6), { errnoName: 'EINVAL' });
  fd.close();
  assert.throws(() => interfaceMac(name), { errnoName: 'ENODEV' });
  assert.equal(openFdCount(), before);
});

test('queues of one tap, and offloads', (t) => {
  if (!canTap(t)) return;
  const one = openTap('vrt%d', { vnetHdrBytes: 12, multiQueue: true });
  const two = openTap(one.name, { vnetHdrBytes: 12, multiQueue: true });
  assert.equal(two.name, one.name);
  const all = { csum: true, tso4: true, tso6: true, ecn: true, ufo: false, uso: true };
  const { uso, ...rest } = setTapOffloads(one.fd.number, all);
  assert.equal(typeof uso, 'boolean');
  assert.deepEqual(rest, { csum: true, tso4: true, tso6: true, ecn: true, ufo: false });
  const none = { csum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso: false };
  assert.deepEqual(setTapOffloads(one.fd.number, { ...all, csum: false }), none);
  assert.throws(() => openTap(one.name, { vnetHdrBytes: 12 }), {
    code: 'ERR_VRING_INTERFACE',
    message: /several queues \(multi_queue\); ask for 2 or more/,
  });
  one.fd.close();
  two.fd.close();
});

test("an interface that is no such TAP, or somebody else's, is refused with what to do", (t) => {
  if (!canTap(t)) return;
  const before = openFdCount();
  const one = openTap('vrt%d', { vnetHdrBytes: 12 });
  const open = (name: string, multiQueue = false) =>
    openTap(name, { vnetHdrBytes: 12, multiQueue });
  assert.throws(() => open(one.name), { code: 'ERR_VRING_INTERFACE_BUSY', message: /end it, or/ });
  assert.throws(() => open(one.name, true), { message: /TAP of one queue; ask for one/ });
  assert.throws(() => open('lo'), { code: 'ERR_VRING_INTERFACE', message: /^lo: .* is no TAP/ });
  one.fd.close();
  assert.equal(openFdCount(), before);
});

test('bad names and addresses are refused', () => {
  const before = openFdCount();
  for (const name of ['sixteen-letters!', 'a b', 'a/b']) {
    assert.throws(() => openTap(name, { vnetHdrBytes: 12 }), { code: 'ERR_VRING_INTERFACE' });
  }
  for (const address of ['10.0.0.1', '10.0.0.256/24', '10.0.0.1/33', 'fe80::1/64', '']) {
    assert.throws(() => addInterfaceAddress('lo', address), { code: 'ERR_VRING_INTERFACE' });
  }
  assert.equal(openFdCount(), before);
});

test('another network namespace, by thread', (t) => {
  if (!canTap(t) || spawnSync('ip', ['netns', 'list']).status !== 0) {
    t.skip('needs root and iproute2');
    return;
  }
  const name = `vring-test-${process.pid}`;
  spawnSync('ip', ['netns', 'add', name]);
  const source = `
    const s = await import(${JSON.stringify(new URL('./index.ts', import.meta.url).href)});
    s.enterNetns('/run/netns/${name}');
    const tap = s.openTap('inside', { vnetHdrBytes: 12 });
    s.setInterfaceUp('inside', true);
    console.log((await import('node:fs')).readFileSync('/proc/thread-self/net/dev', 'utf8'));`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
  });
  spawnSync('ip', ['netns', 'del', name]);
  assert.match(child.stdout, /inside/, child.stderr);
  assert.equal(networkInterfaces()['inside'], undefined);
});
