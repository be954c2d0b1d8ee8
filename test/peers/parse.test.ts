import { deepEqual, equal } from 'node:assert/strict';
import { test } from 'node:test';
import { parseCycles, parseMegahertz, parseStats, vhostVdev, virtioUserVdev } from './dpdk.ts';

const STATS = `
  ######################## NIC statistics for port 0  ########################
  RX-packets: 18397920   RX-missed: 1          RX-bytes:  1177466880
  RX-errors: 2
  RX-nombuf:  0
  TX-packets: 18398944   TX-errors: 3          TX-bytes:  1177532416

  Throughput (since last show)
  Rx-pps:      6114338          Rx-bps:   3130541512
  Tx-pps:      6114327          Tx-bps:   3130535896
  ############################################################################
`;

test('counters of testpmd', () => {
  const [port, ...others] = parseStats(STATS);
  equal(others.length, 0);
  deepEqual(port, {
    rxPackets: 18397920,
    rxMissed: 1,
    rxErrors: 2,
    rxBytes: 1177466880,
    txPackets: 18398944,
    txErrors: 3,
    txBytes: 1177532416,
    rxPps: 6114338,
    txPps: 6114327,
  });
  equal(parseStats(STATS + STATS.replace('port 0', 'port 1')).length, 2);
});

test('cycles per packet and the clock they count', () => {
  const text =
    'CPU cycles/packet=378.55 (total cycles=6964 / total io packets=18) at 2600 MHz Clock';
  equal(parseCycles(text), 378.55);
  equal(parseMegahertz(text), 2600);
  equal(parseCycles('Done.'), null);
});

test('devices as DPDK names them', () => {
  equal(vhostVdev(0, '/a', 2, true), 'net_vhost0,iface=/a,queues=2,client=1');
  const options = { path: '/a', server: true, packed: true, inOrder: true, mrgRxbuf: false };
  equal(
    virtioUserVdev(1, options),
    'net_virtio_user1,path=/a,queues=1,queue_size=256,server=1,packed_vq=1,in_order=1,mrg_rxbuf=0',
  );
});
