/** Device state: what is saved is loaded, and what is not a state changes nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkNetState, encodeNetState, type NetState, parseNetState } from './net-state.ts';

const STATE: NetState = {
  filter: {
    promiscuous: false,
    allMulticast: true,
    allUnicast: false,
    noMulticast: false,
    noUnicast: false,
    noBroadcast: true,
    own: '52:54:00:00:00:01',
    addresses: ['01:00:5e:00:00:01', '52:54:00:00:00:02'],
    vlans: [10, 4095],
  },
  activePairs: 3,
  counters: { faults: 1, txDropFiltered: 7 },
  features: 0x1_3000_8000n,
  mtu: 1400,
  linkUp: true,
  mac: '52:54:00:00:00:01',
  macs: [['52:54:00:00:00:01', 10, 3]],
  switchCounters: { rxFrames: 1_000_000_000_000, txFrames: 0 },
};

const text = (state: NetState): string => new TextDecoder().decode(encodeNetState(state));
const parse = (written: string): NetState => parseNetState(new TextEncoder().encode(written));

test('what is encoded is parsed', () => {
  assert.deepEqual(parseNetState(encodeNetState(STATE)), STATE);
  const bare = {
    ...STATE,
    mac: null,
    macs: [],
    filter: { ...STATE.filter, own: null, vlans: null },
  };
  assert.deepEqual(parseNetState(encodeNetState(bare)), bare);
});

test('what is no state of ours is refused by name', () => {
  const refused = (written: string, code: string, message: RegExp): void => {
    assert.throws(
      () => parse(written),
      (error: Error & { code: string }) => {
        assert.equal(error.code, code, error.message);
        assert.match(error.message, message);
        return true;
      },
    );
  };
  refused('', 'ERR_VRING_STATE_FORMAT', /does not begin with "vring-net-port\/1"/);
  refused('QEMU state', 'ERR_VRING_STATE_FORMAT', /does not begin/);
  refused('x'.repeat(5_000_000), 'ERR_VRING_STATE_FORMAT', /5000000 bytes, at most/);
  refused('vring-net-port/2\n{}', 'ERR_VRING_STATE_VERSION', /version 2, this vring knows 1/);
  refused(text(STATE).slice(0, -20), 'ERR_VRING_STATE_FORMAT', /no JSON/);
  const swap = (from: string, to: string, message: RegExp): void => {
    const written = text(STATE);
    assert.ok(written.includes(from), from);
    refused(written.replace(from, to), 'ERR_VRING_STATE_VALUE', message);
  };
  swap('"mtu":1400', '"mtu":140000', /mtu is 140000, expected a whole number from 68 to 65535/);
  swap('"mtu":1400', '"mtu":1400.5', /mtu/);
  swap('"mtu":1400', '"mtu":1400,"more":1', /"more", expected no such key/);
  swap('"mtu":1400,', '', /mtu in it/);
  swap('"activePairs":3', '"activePairs":0', /activePairs/);
  swap('"linkUp":true', '"linkUp":1', /linkUp/);
  swap('[10,4095]', '[10,4096]', /filter.vlans\[1\]/);
  swap('"own":"52', '"own":"zz', /filter.own/);
  swap('["52:54:00:00:00:01",10,3]', '["52:54:00:00:00:01",0,3]', /macs\[0\]\[1\]/);
  swap('["52:54:00:00:00:01",10,3]', '["53:54:00:00:00:01",10,3]', /no group address/);
  swap('["52:54:00:00:00:01",10,3]', '["52:54:00:00:00:01",10]', /macs\[0\]/);
  swap('"faults":1', '"__proto__":1', /name of a counter/);
  swap('"faults":1', '"faults":-1', /counters.faults/);
  swap('"0x130008000"', '"0x1g"', /features/);
  const addresses = JSON.stringify(Array.from({ length: 513 }, () => '52:54:00:00:00:02'));
  swap('["01:00:5e:00:00:01","52:54:00:00:00:02"]', addresses, /at most 512/);
});

test('a port that has less refuses, and says what', () => {
  const limits = { features: STATE.features, queuePairs: 4, mtu: 1500 };
  checkNetState(STATE, limits);
  const refused = (less: Partial<typeof limits>, message: RegExp): void => {
    assert.throws(() => checkNetState(STATE, { ...limits, ...less }), message);
  };
  refused({ features: STATE.features & ~0x8000n }, /acked 0x8000, which this port lacks/);
  refused({ queuePairs: 2 }, /3 queue pairs are in use, this port has 2/);
  refused({ mtu: 1399 }, /its mtu is 1400, this port's 1399/);
});
