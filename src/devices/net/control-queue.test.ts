import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { FAULT_CHAIN_DIRECTION } from '../../virtqueue/faults.ts';
import * as net from '../../wire/virtio-net.ts';
import { PortFixture, frameBatch } from './port-fixture.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0, 0, 0, 1);
const CONTROLQ = 2; // one queue pair
const HEADER = 12;

let f: PortFixture;
function start(queuePairs = 1): void {
  f = new PortFixture({
    mac: MAC,
    queuePairs,
    features: queuePairs > 1 ? [net.VIRTIO_NET_F_MQ] : [],
  });
}
afterEach(() => f.close());

/** Sends one command, as Linux does: header, data, answer in buffers of their own. */
function command(kind: number, order: number, data: readonly number[], queue = CONTROLQ): number {
  const at = f.buffer(0);
  f.write(at, Uint8Array.of(kind, order));
  f.write(at + 64, Uint8Array.from(data));
  const ring = f.rings[queue];
  const segments: [number, number][] = [[at, 2]];
  if (data.length > 0) segments.push([at + 64, data.length]);
  f.write(at + 2000, Uint8Array.of(0xee));
  ring.add(segments, [[at + 2000, 1]]);
  assert.equal(f.port.control(ring.vring), 1);
  const [used] = ring.reap();
  assert.equal(used[1], 1, 'one byte written');
  return f.bytes(at + 2000, 1)[0];
}

/** Whether the driver gets a frame to that address, tagged or not. */
function delivers(destination: readonly number[], tag: number | null = null): boolean {
  const sender = new PortFixture();
  const batch = frameBatch();
  const bytes = new Uint8Array(HEADER + 100);
  bytes.set(destination, HEADER);
  if (tag !== null) bytes.set([0x81, 0, tag >> 8, tag & 255], HEADER + 12);
  sender.write(sender.buffer(0), bytes);
  sender.rings[1].add([[sender.buffer(0), bytes.length]], []);
  assert.equal(sender.port.receive(batch), 1);
  f.rings[0].add([], [[f.buffer(10), 2048]]);
  const delivered = f.port.transmit(batch, Int32Array.of(0), 1) === 1;
  if (delivered) f.rings[0].reap();
  sender.close();
  return delivered;
}

const OTHER = [2, 0, 0, 0, 0, 9];
const BROADCAST = [255, 255, 255, 255, 255, 255];
const GROUP = [0x33, 0x33, 0, 0, 0, 1];

test('a port is promiscuous until its driver asks for less', () => {
  start();
  assert.ok(delivers(OTHER));
  assert.equal(
    command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_PROMISC, [0]),
    net.VIRTIO_NET_OK,
  );
  assert.ok(!delivers(OTHER));
  assert.ok(delivers([...MAC]));
  assert.ok(delivers(BROADCAST));
  assert.ok(!delivers(GROUP));
  assert.equal(f.port.counters.txDropFiltered, 2);
});

test('all-multicast, no-broadcast and the address tables', () => {
  start();
  command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_PROMISC, [0]);
  const table = [1, 0, 0, 0, ...OTHER, 1, 0, 0, 0, ...GROUP];
  assert.equal(
    command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_TABLE_SET, table),
    net.VIRTIO_NET_OK,
  );
  assert.ok(delivers(OTHER));
  assert.ok(delivers(GROUP));
  command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_TABLE_SET, [0, 0, 0, 0, 0, 0, 0, 0]);
  assert.ok(!delivers(GROUP));
  command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_ALLMULTI, [1]);
  assert.ok(delivers(GROUP));
  command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_NOBCAST, [1]);
  assert.ok(!delivers(BROADCAST));
});

test('the driver changes its address', () => {
  start();
  command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_PROMISC, [0]);
  assert.equal(
    command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_ADDR_SET, OTHER),
    net.VIRTIO_NET_OK,
  );
  assert.ok(delivers(OTHER));
  assert.ok(!delivers([...MAC]));
  assert.equal(
    command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_ADDR_SET, GROUP),
    net.VIRTIO_NET_ERR,
    'a group address is nobody',
  );
});

test('VLANs are filtered from the first command on', () => {
  start();
  assert.ok(delivers(OTHER, 7));
  assert.equal(
    command(net.VIRTIO_NET_CTRL_VLAN, net.VIRTIO_NET_CTRL_VLAN_ADD, [5, 0]),
    net.VIRTIO_NET_OK,
  );
  assert.ok(delivers(OTHER, 5));
  assert.ok(!delivers(OTHER, 7));
  assert.ok(delivers(OTHER));
  command(net.VIRTIO_NET_CTRL_VLAN, net.VIRTIO_NET_CTRL_VLAN_DEL, [5, 0]);
  assert.ok(!delivers(OTHER, 5));
  assert.equal(
    command(net.VIRTIO_NET_CTRL_VLAN, net.VIRTIO_NET_CTRL_VLAN_ADD, [0, 16]),
    net.VIRTIO_NET_ERR,
  );
});

test('the driver says how many queue pairs it uses', () => {
  start(4);
  const set = (pairs: number): number =>
    command(net.VIRTIO_NET_CTRL_MQ, net.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, [pairs, 0], 8);
  assert.equal(set(2), net.VIRTIO_NET_OK);
  assert.equal(set(0), net.VIRTIO_NET_ERR);
  assert.equal(set(5), net.VIRTIO_NET_ERR);
});

test('commands that make no sense are answered with an error', () => {
  start();
  assert.equal(command(99, 0, [0]), net.VIRTIO_NET_ERR);
  assert.equal(command(net.VIRTIO_NET_CTRL_RX, 99, [0]), net.VIRTIO_NET_ERR);
  assert.equal(
    command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_PROMISC, []),
    net.VIRTIO_NET_ERR,
  );
  const endless = [255, 255, 255, 255, ...OTHER];
  assert.equal(
    command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_TABLE_SET, endless),
    net.VIRTIO_NET_ERR,
  );
  assert.equal(
    command(net.VIRTIO_NET_CTRL_ANNOUNCE, net.VIRTIO_NET_CTRL_ANNOUNCE_ACK, []),
    net.VIRTIO_NET_OK,
  );
});

test('a command without room for the answer breaks the control queue', () => {
  start();
  const ring = f.rings[CONTROLQ];
  f.write(f.buffer(0), Uint8Array.of(0, 0, 1));
  ring.add([[f.buffer(0), 3]], []);
  assert.equal(f.port.control(ring.vring), 0);
  assert.deepEqual(f.events, [{ kind: 'fault', device: 0, index: 2, code: FAULT_CHAIN_DIRECTION }]);
});
