import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as wire from '../wire/vhost-user.ts';
import { selected, whyNot } from './applies.ts';
import { BACK_END_CHECKS } from './back-end-checks.ts';
import { check, type CheckResult, type Verdict } from './check.ts';
import { PROFILES, type DeviceProfile } from './profiles.ts';
import { htmlReport } from './report-html.ts';
import { escapeMarkup, junitReport } from './report-junit.ts';
import { textReport } from './report-text.ts';
import { failures, makeReport, type Report } from './report.ts';
import { describeMessage, Transcript } from './transcript.ts';

const net = PROFILES['net'] as DeviceProfile;

function result(id: string, verdict: Verdict, detail: string): CheckResult {
  const transcript = new Transcript();
  transcript.add('>', 'SET_OWNER <&> "quoted"');
  const severity = id.endsWith('2') ? 'may' : 'must';
  const made = check(id, `title of ${id}`, 'a rule', 'a section', { severity }, async () => {});
  return { check: made, verdict, detail, critical: false, milliseconds: 12.4, transcript };
}

function report(): Report {
  return makeReport({
    side: 'back-end',
    socket: '/tmp/<s>',
    level: 'full',
    startedAt: new Date(0),
    milliseconds: 1500,
    offer: { features: 1n << 32n, protocolFeatures: 9n, profile: net },
    results: [
      result('BE-A-001', 'pass', ''),
      result('BE-A-002', 'fail', 'why <b>'),
      result('BE-B-001', 'fail', 'because'),
      result('BE-B-003', 'not applicable', 'not offered'),
      result('BE-B-004', 'error', 'gone'),
    ],
    reproduce: ({ id }) => `vring conform --only ${id}`,
  });
}

test('failures are first, worst first, with the way to repeat them', () => {
  const text = textReport(report());
  const order = ['BE-B-001', 'BE-A-002', 'BE-B-004'].map((id) => text.indexOf(`) ${id}`));
  assert.deepEqual(
    order.toSorted((a, b) => a - b),
    order,
  );
  assert.match(text, /again: vring conform --only BE-B-001/);
  assert.match(text, /1 pass, 2 fail, 1 not applicable, 1 error in 1\.5 s/);
});

test('--fail-on counts failures of that severity and worse', () => {
  assert.deepEqual(
    failures(report(), 'must').map(({ id }) => id),
    ['BE-B-001'],
  );
  assert.deepEqual(failures(report()).length, 2);
});

test('text of peers is no markup', () => {
  assert.equal(
    escapeMarkup('<a href="x">\u0000&\'</a>'),
    '&lt;a href=&quot;x&quot;&gt;?&amp;&#39;&lt;/a&gt;',
  );
  const html = htmlReport(report());
  assert.ok(!html.includes('why <b>') && html.includes('why &lt;b&gt;'));
  assert.ok(!/(src|href)=/.test(html), 'nothing from elsewhere');
  const xml = junitReport(report(), 'must');
  assert.match(xml, /name="back-end net BE-A" tests="2" failures="0"/);
  assert.match(xml, /name="back-end net BE-B" tests="3" failures="1" errors="1" skipped="1"/);
});

test('messages are shown by the names of the table', () => {
  const payload = wire.VringState.encode({ index: 1, num: 256 });
  const shown = { request: 8, flags: 9, size: 8, payload, fdCount: 0 };
  assert.equal(describeMessage(shown), 'SET_VRING_NUM need_reply index=1 num=256');
  const ack = { ...shown, flags: 5, payload: new Uint8Array(8) };
  assert.equal(describeMessage(ack), 'SET_VRING_NUM reply ack 0 (success)');
  const odd = { request: 4000, flags: 2, size: 9, payload: new Uint8Array(1), fdCount: 1 };
  assert.equal(
    describeMessage(odd),
    'request 4000 flags=0x2 size=9 (1 bytes follow) payload 00 +1 fd',
  );
});

test('a check says what it lacks', () => {
  const find = (id: string) => BACK_END_CHECKS.find((each) => each.id === id)!;
  const offer = { features: 1n << 30n, protocolFeatures: 0n, profile: net };
  assert.equal(whyNot(find('BE-NEG-001'), offer), null);
  assert.equal(whyNot(find('BE-NEG-013'), offer), 'protocol feature MQ is not offered');
  assert.equal(whyNot(find('BE-VQ-030'), offer), 'virtio feature RING_PACKED is not offered');
  assert.equal(whyNot(find('BE-BLK-001'), offer), 'only for blk');
  const generic = { ...offer, profile: PROFILES['generic'] as DeviceProfile };
  assert.match(whyNot(find('BE-RING-001'), generic) ?? '', /no request/);
  assert.ok(selected(find('BE-NEG-001'), ['BE-NEG']) && !selected(find('BE-NEG-001'), ['BE-NE']));
});
