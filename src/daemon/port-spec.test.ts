import { strict as assert } from 'node:assert';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { buildConfig } from './config.ts';
import { problemLines } from './config-problem.ts';
import type { ConfigError } from '../base/errors.ts';

function port(spec: string) {
  return buildConfig({ ports: [spec] }).ports[0]!;
}

function problem(spec: string): string {
  try {
    port(spec);
  } catch (error) {
    return problemLines(error as ConfigError).join('\n');
  }
  return 'no error';
}

test('every option of a vhost-user port', () => {
  const spec =
    'vm0=vhost-user:/run/vm0.sock,queues=2,trunk=20+10,native=1,mode=0600,owner=1:2,mtu=9000,' +
    'packed=off,mrg=off,iommu=on,postcopy=on,tso=off,csum=on,uso=off,mac=52:54:00:AA:BB:CC,reflect,mac-limit=5,policy=power';
  assert.deepEqual(port(spec), {
    name: 'vm0',
    kind: 'vhost-user',
    path: '/run/vm0.sock',
    mode: 'server',
    socketOwner: { uid: 1, gid: 2 },
    socketMode: 0o600,
    queuePairs: 2,
    mac: '52:54:00:aa:bb:cc',
    packed: false,
    mrgRxbuf: false,
    iommu: true,
    postcopy: true,
    vlan: { mode: 'trunk', allowed: [1, 10, 20], native: 1 },
    offload: { csum: true, tso: false, uso: false },
    mtu: 9000,
    reflect: true,
    macLimit: 5,
    policy: 'power',
  });
});

test('a client port, a tap port, a relative path', () => {
  const client = port('c=vhost-user:c.sock,client');
  assert.ok(client.kind === 'vhost-user' && client.mode === 'client');
  assert.equal(client.path, resolve('c.sock'));
  assert.equal(client.socketMode, null);
  const up = port('up=tap:tap0,vlan=10,csum=off');
  assert.ok(up.kind === 'tap' && up.interface === 'tap0');
  assert.deepEqual(up.vlan, { mode: 'access', vid: 10 });
  assert.deepEqual(up.offload, { csum: false, tso: false, uso: false });
  assert.deepEqual(port('t=tap:t,native=3,trunk=all').vlan, {
    mode: 'trunk',
    allowed: 'all',
    native: 3,
  });
  assert.deepEqual(port('t=tap:t,trunk=2,native=none').vlan, {
    mode: 'trunk',
    allowed: [2],
    native: null,
  });
});

const WRONG: readonly (readonly [spec: string, problem: string])[] = [
  [
    'vm0',
    '--port vm0: "vm0" is not a port; write NAME=vhost-user:PATH[,OPTION...], NAME=tap:INTERFACE[,OPTION...] (also packet: and xdp:) or NAME=vduse:DEVICE[,OPTION...]',
  ],
  [
    '=tap:x',
    '--port: NAME: "" is not a port name (1 to 63 letters, digits, ".", "_", "-"; a letter or digit first)',
  ],
  [
    'a=vhostuser:/x',
    '--port a: KIND: "vhostuser" is not one of vhost-user, tap, packet, xdp, vduse; did you mean "vhost-user"?',
  ],
  ['a=tap:', '--port a: INTERFACE: "" is not an interface name of 1 to 15 bytes, such as tap0'],
  [
    'a=vhost-user:',
    '--port a: PATH: "" is not an absolute path of at most 107 bytes, such as /run/vring/vm0.sock',
  ],
  ['a=vhost-user:/x,quues=2', '--port a: "quues" is not an option; did you mean "queues"?'],
  ['a=vhost-user:/x,__proto__=2', /"__proto__" is not an option; options are client, /.source],
  ['a=vhost-user:/x,', '--port a: there is an empty option; remove the extra comma'],
  ['a=vhost-user:/x,client=1', '--port a: client: takes no value; write just "client"'],
  ['a=vhost-user:/x,mtu', '--port a: mtu: needs a value; write "mtu=..."'],
  ['a=vhost-user:/x,mtu=1,mtu=2', '--port a: mtu: given twice; remove one'],
  ['a=vhost-user:/x,client,server', '--port a: server: contradicts client; remove one'],
  [
    'a=tap:x,vlan=1,trunk=all',
    '--port a: trunk: contradicts vlan, which makes an access port; remove one',
  ],
  ['a=tap:x,native=1', '--port a: native: belongs to a trunk; add trunk=all or trunk=VID+VID'],
  [
    'a=tap:x,trunk=1+9999',
    '--port a: trunk: 9999 is not a whole number from 1 to 4094 (a VLAN ID)',
  ],
  ['a=tap:x,trunk=1+', '--port a: trunk: "" is not a whole number from 1 to 4094 (a VLAN ID)'],
  ['a=tap:x,queues=0', '--port a: queues: 0 is not a whole number from 1 to 64 (queues)'],
  ['a=packet:x,mode=copy', '--port a: mode: a packet port has no such option; remove it'],
  ['a=xdp:x,mode=zero', '--port a: mode: "zero" is not one of auto, copy, zero-copy'],
  ['a=xdp:x,attach=hw', '--port a: attach: "hw" is not one of auto, native, generic'],
  [
    'a=tap:x,policy=fast',
    '--port a: policy: "fast" is not one of latency, balanced, throughput, power',
  ],
  ['a=xdp:x,qdisc-bypass=on', '--port a: qdisc-bypass: an xdp port has no such option; remove it'],
  [
    'a=vduse:n0,queues=2',
    '--port a: queues: a vduse port has no such option (VDUSE has no control queue, and without it a driver uses one pair of queues); remove it',
  ],
  ['a=vduse:n0,bind=vfio', '--port a: bind: "vfio" is not one of virtio, vhost, none'],
  [
    'a=vduse:a/b',
    '--port a: DEVICE: "a/b" is not a device name of at most 255 of A-Z a-z 0-9 _ . : -, such as net0',
  ],
  [
    'a=vhost-user:/x,bind=virtio',
    '--port a: bind: a vhost-user port has no such option; remove it',
  ],
  [
    'a=vhost-user:/x,queues=65',
    '--port a: queues: 65 is not a whole number from 1 to 64 (pairs of queues)',
  ],
  ['a=vhost-user:/x,packed=no', '--port a: packed: "no" is not on or off'],
  [
    'a=vhost-user:/x,csum=off,uso=on',
    '--port a: uso: uso needs checksum offload; turn csum on or uso off',
  ],
  [
    'a=vhost-user:/x,client,owner=root',
    '--port a: owner: the other side makes the socket in client mode; remove this or client mode',
  ],
];

for (const [spec, expected] of WRONG) {
  test(`is wrong: ${spec}`, () => {
    const actual = problem(spec);
    if (expected.startsWith('--port')) assert.equal(actual, expected);
    else assert.match(actual, new RegExp(expected));
  });
}
