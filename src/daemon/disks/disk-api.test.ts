/** Disks in the control API, over a target that is invented. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildConfig } from '../config.ts';
import { FakeSwitch } from '../fake-switch.ts';
import { SwitchDaemon } from '../switch-daemon.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-disk-api-'));
const control = join(folder, 'c.sock');
let daemon: SwitchDaemon;
let fake: FakeSwitch;

before(async () => {
  const text = 'disks: [{name: vm0, socket: /run/vm0, layers: [/srv/vm0.img]}]';
  const config = buildConfig({ file: { name: 'd.yaml', text }, control });
  daemon = await SwitchDaemon.start(config, async (c) => (fake = await FakeSwitch.start(c)));
});
after(async () => {
  await daemon.close();
  rmSync(folder, { recursive: true, force: true });
});

type Answer = { status: number; json: ReturnType<typeof JSON.parse>; text: string };

function call(method: string, path: string, body?: unknown): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath: control, path, method, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.on('end', () => {
        const isJson = response.headers['content-type']?.includes('json');
        const json = isJson ? JSON.parse(text) : undefined;
        resolve({ status: response.statusCode ?? 0, json, text });
      });
    });
    outgoing.on('error', reject);
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

test('adapters and their units, which are disks', async () => {
  const unit = { unit: '0:0', layers: ['memory:1M'] };
  const added = await call('POST', '/v1/scsi', { name: 'a', socket: '/run/a', units: [unit] });
  assert.deepEqual([added.status, added.json.units], [201, ['a:0:0']]);
  const attached = await call('POST', '/v1/scsi/a/units', { ...unit, unit: '7:1', serial: 'x' });
  const { unit: place, serial } = attached.json;
  assert.deepEqual([attached.status, place], [201, { adapter: 'a', target: 7, lun: 1 }]);
  assert.equal(serial, 'x');
  assert.deepEqual((await call('GET', '/v1/scsi/a')).json.units, ['a:0:0', 'a:7:1']);
  assert.equal((await call('GET', '/v1/disks/a%3A7%3A1')).json.name, 'a:7:1');
  const { text } = await call('GET', '/metrics');
  assert.match(text, /vring_disk_reads_total\{disk="a:7:1"\} 100/);
  assert.match(text, /vring_scsi_units\{adapter="a"\} 2/);
  assert.match(text, /vring_scsi_state\{adapter="a",state="up"\} 1/);
  assert.match(text, /vring_scsi_counter_total\{adapter="a",counter="events"\} 2/);
  assert.equal((await call('DELETE', '/v1/disks/a:7:1')).status, 204);
  assert.deepEqual((await call('GET', '/v1/scsi')).json[0].units, ['a:0:0']);
  const wrong = await call('POST', '/v1/scsi/a/units', { unit: '0:256', layers: ['memory:1M'] });
  assert.deepEqual([wrong.status, wrong.json.error.path], [400, 'unit']);
  assert.match(wrong.json.error.message, /"0:256" is not a unit as TARGET:LUN, from "0:0"/);
  const block = { ...unit, blockSize: 1024 };
  const { json } = await call('POST', '/v1/scsi', { name: 'b', socket: '/run/b', units: [block] });
  assert.match(json.error.message, /units\[0\]\.blockSize: 1024 is not one of 512, 4096/);
  const none = await call('POST', '/v1/scsi/none/units', unit);
  assert.deepEqual([none.status, none.json.error.code], [404, 'ERR_VRING_SCSI_NOT_FOUND']);
  assert.equal((await call('DELETE', '/v1/scsi/a')).status, 204);
  assert.equal((await call('GET', '/v1/scsi/a')).status, 404);
});

test('disks are listed, added, changed and removed', async () => {
  const { json: list } = await call('GET', '/v1/disks');
  assert.deepEqual(
    list.map(({ name }: { name: string }) => name),
    ['vm0'],
  );
  const disk = { name: 'vm1', socket: '/run/vm1', layers: [{ crypt: { keyFile: '/k' } }, '/b'] };
  const added = await call('POST', '/v1/disks', disk);
  assert.deepEqual([added.status, added.json.layers], [201, ['crypt:/k', 'file:/b']]);
  const limited = await call('PATCH', '/v1/disks/vm1', { limits: { iops: 5 }, sizeBytes: 1048576 });
  assert.deepEqual([limited.json.limits, limited.json.sizeBytes], [{ iops: 5 }, 1048576]);
  const exported = await call('POST', '/v1/disks/vm1/export', { socket: '/run/n' });
  assert.equal(exported.json.export, 'nbd+unix:///vm1?socket=/run/n');
  assert.equal((await call('DELETE', '/v1/disks/vm1/export')).json.export, null);
  assert.equal((await call('POST', '/v1/disks/vm1/reopen')).json.state, 'up');
  assert.equal((await call('DELETE', '/v1/disks/vm1')).status, 204);
  assert.equal((await call('GET', '/v1/disks/vm1')).status, 404);
});

test('what layers do is asked of them', async () => {
  assert.deepEqual((await call('POST', '/v1/disks/vm0/snapshots', { name: 's' })).json, {
    name: 's',
  });
  assert.deepEqual((await call('GET', '/v1/disks/vm0/snapshots')).json, [{ name: 's' }]);
  await call('POST', '/v1/disks/vm0/rollback', { name: 's', force: true });
  await call('POST', '/v1/disks/vm0/commit', {});
  const rules = [{ op: 'read', action: 'error', errno: 'EIO' }];
  assert.equal((await call('POST', '/v1/disks/vm0/faults', { rules })).status, 204);
  const cut = await call('POST', '/v1/disks/vm0/cut', { seed: 7 });
  assert.deepEqual(cut.json, { seed: 7, requests: 3, kept: 1, lost: 1, torn: 1 });
  assert.deepEqual(fake.disks.asked, [
    ['rollback', { name: 's', force: true }],
    ['commit', undefined],
    ['faults', rules],
    ['cut', 7],
  ]);
});

const REFUSED: readonly (readonly [
  method: string,
  path: string,
  body: unknown,
  status: number,
  said: RegExp,
])[] = [
  ['GET', '/v1/disks/nix', undefined, 404, /no disk named \\"nix\\"/],
  ['POST', '/v1/disks', { name: 'x', layers: ['/a'] }, 400, /socket: missing/],
  ['POST', '/v1/disks', { name: 'vm0', socket: '/s', layers: ['/a'] }, 409, /named vm0 already/],
  ['POST', '/v1/disks', { name: 'x', socket: '/s', layers: ['limit:iops=1'] }, 400, /stands on/],
  ['PATCH', '/v1/disks/vm0', {}, 400, /nothing to change; give limits or sizeBytes/],
  ['PATCH', '/v1/disks/vm0', { sizeBytes: 1000 }, 400, /1000 is not bytes, a multiple of 512/],
  ['PATCH', '/v1/disks/vm0', { size: 1024 }, 400, /size: unknown key; did you mean \\"sizeBytes/],
  ['POST', '/v1/disks/vm0/snapshots', { name: '../x' }, 400, /is not the name of a snapshot/],
  ['POST', '/v1/disks/vm0/faults', { rules: [{ op: 'read' }] }, 400, /action: missing/],
  ['POST', '/v1/disks/vm0/cut', { seed: -1 }, 400, /seed: -1 is not a whole number from 0/],
  ['PUT', '/v1/disks', {}, 405, /knows GET, POST, not PUT/],
];

for (const [method, path, body, status, said] of REFUSED) {
  test(`${method} ${path} ${JSON.stringify(body)} is refused`, async () => {
    const answer = await call(method, path, body);
    assert.equal(answer.status, status, answer.text);
    assert.match(answer.text, said);
  });
}

test('the metrics have each disk, with histograms', async () => {
  const { text } = await call('GET', '/metrics');
  for (const line of [
    'vring_disk_reads_total{disk="vm0"} 100',
    'vring_disk_errors_total{disk="vm0"} 1',
    'vring_disk_state{disk="vm0",state="up"} 1',
    'vring_disk_size_bytes{disk="vm0"} 1048576',
    '# TYPE vring_disk_latency_seconds histogram',
    'vring_disk_latency_seconds_bucket{disk="vm0",op="read",le="0.000004"} 70',
    'vring_disk_latency_seconds_bucket{disk="vm0",op="read",le="+Inf"} 100',
    'vring_disk_latency_seconds_count{disk="vm0",op="read"} 100',
  ]) {
    assert.ok(text.split('\n').includes(line), line);
  }
});
