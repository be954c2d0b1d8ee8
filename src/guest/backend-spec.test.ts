import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backendText, parseBackendOrSocket, parseBackendSpec } from './backend-spec.ts';

test('back-ends as people write them, and back', () => {
  const texts = [
    'vhost-user:/run/vm0.sock',
    'vhost-user:vm0.sock,server',
    'vhost-net:tap0',
    'vhost-vdpa:/dev/vhost-vdpa-0',
    'vhost-vdpa:/dev/vhost-vdpa-0,shadow',
    'in-process',
    'in-process:tap0',
  ];
  for (const text of texts) assert.equal(backendText(parseBackendSpec(text, '--backend')), text);
  assert.deepEqual(parseBackendSpec('in-process', '-'), { kind: 'in-process', tap: null });
});

test('what is wrong is named, with what is expected', () => {
  const wrong: [string, RegExp][] = [
    ['vm0.sock', /^--backend: "vm0.sock" is no back-end; expected is vhost-user:PATH/],
    ['vhost-usr:/x', /is no back-end/],
    ['toString', /is no back-end/],
    ['vhost-user:', /lacks the path of a socket; for example vhost-user:\/run/],
    ['vhost-net', /lacks the name of a TAP interface/],
    ['in-process:', /lacks the name/],
    ['vhost-net:tap0,server', /vhost-net knows no options, and no "server"/],
    ['vhost-user:/x,sever', /knows only server, and no "sever"/],
  ];
  for (const [text, message] of wrong) {
    const parse = () => parseBackendSpec(text, '--backend');
    assert.throws(parse, { code: 'ERR_VRING_CONFIG', message });
  }
});

test('where a path has always been a socket it still is', () => {
  const socket = { kind: 'vhost-user', socket: 'a,b.sock', server: false };
  assert.deepEqual(parseBackendOrSocket('a,b.sock', '--migrate-to'), socket);
  assert.equal(parseBackendOrSocket('vhost-net:tap1', '--migrate-to').kind, 'vhost-net');
  assert.throws(() => parseBackendOrSocket('vhost-net:', '--migrate-to'), /lacks/);
});
