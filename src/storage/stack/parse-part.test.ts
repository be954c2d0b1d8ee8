import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parsePart, parseStack } from './parse-part.ts';
import { parseBytes } from './part-options.ts';

test('every kind as people write it', () => {
  const cases: [string, object][] = [
    ['/srv/a,b.img', { kind: 'file', path: '/srv/a,b.img' }],
    [
      'file:/dev/sdb,direct=on,lock=off',
      { kind: 'file', path: '/dev/sdb', direct: 'on', lock: false },
    ],
    ['file:a,,b', { kind: 'file', path: 'a,b' }],
    ['memory:64M', { kind: 'memory', sizeBytes: 64 * 2 ** 20 }],
    ['null:1G', { kind: 'null', sizeBytes: 2 ** 30 }],
    ['nbd://localhost:10809/x', { kind: 'nbd', uri: 'nbd://localhost:10809/x' }],
    ['nbd+unix:///x?socket=/run/n', { kind: 'nbd', uri: 'nbd+unix:///x?socket=/run/n' }],
    ['nbd:nbd://h/x,timeout=5', { kind: 'nbd', uri: 'nbd://h/x', timeoutSeconds: 5 }],
    [
      's3:endpoint=https://e,region=r,bucket=b,key=k,addressing=virtual-host,credentials=/c',
      {
        kind: 's3',
        endpoint: 'https://e',
        region: 'r',
        bucket: 'b',
        key: 'k',
        credentialsFile: '/c',
        addressing: 'virtual-host',
      },
    ],
    [
      'http:http://h/x,cache-size=1G,cache-block=1M,timeout=9',
      {
        kind: 'http',
        url: 'http://h/x',
        cache: { sizeBytes: 2 ** 30, blockBytes: 2 ** 20 },
        timeoutSeconds: 9,
      },
    ],
    ['https://host/a.img', { kind: 'http', url: 'https://host/a.img' }],
    [
      'http:https://host/a.img,cache=/c,cache-size=1G',
      { kind: 'http', url: 'https://host/a.img', cache: { path: '/c', sizeBytes: 2 ** 30 } },
    ],
    ['limit:iops=500,bandwidth=10M', { kind: 'limit', iops: 500, bytesPerSecond: 10 * 2 ** 20 }],
    ['crypt:/etc/key', { kind: 'crypt', keyFile: '/etc/key' }],
    ['crypt:/k,discard=pass', { kind: 'crypt', keyFile: '/k', discard: 'pass' }],
    ['fault:seed=7,cache=volatile', { kind: 'fault', seed: 7, cache: 'volatile' }],
    ['overlay:/srv/vm0', { kind: 'overlay', folder: '/srv/vm0' }],
    ['zoned', { kind: 'zoned' }],
    [
      'zoned:64M,capacity=48M,conventional=4,open=8,active=16,granularity=512',
      {
        kind: 'zoned',
        zoneBytes: 64 * 2 ** 20,
        capacityBytes: 48 * 2 ** 20,
        conventional: 4,
        maxOpen: 8,
        maxActive: 16,
        granularityBytes: 512,
      },
    ],
    ['qcow2', { kind: 'qcow2' }],
    ['qcow2:backing=follow', { kind: 'qcow2', backing: 'follow' }],
  ];
  for (const [text, part] of cases) assert.deepEqual(parsePart(text, 'layer'), part, text);
});

test('what is wrong is named', () => {
  const cases: [string, RegExp][] = [
    ['floppy:/a', /layer: 'floppy' is no kind of layer; expected is file:PATH/],
    ['file', /file needs a path/],
    ['file:/a,direct=maybe', /direct=maybe, expected off, auto, on/],
    ['file:/a,sync=on', /file has no option sync/],
    ['limit:iops=-1', /iops=-1 is no number/],
    ['limit:iops=1,iops=2', /iops is given twice/],
    ['qcow2:/a.qcow2', /'\/a\.qcow2': qcow2 takes options only/],
    ['memory:lots', /'lots' is no number of bytes/],
    ['http:https://h/x,cache=/c', /cache needs a cache-size/],
  ];
  for (const [text, message] of cases) assert.throws(() => parsePart(text, 'layer'), message, text);
});

test('a stack has one source, at its end', () => {
  assert.equal(parseStack(['qcow2', '/a'], '--layer').length, 2);
  assert.throws(() => parseStack([], '--layer'), /has 0 parts/);
  assert.throws(() => parseStack(['qcow2'], '--layer'), /--layer\[0\]: qcow2 stands on something/);
  assert.throws(
    () => parseStack(['/a', 'memory:1M'], '--layer'),
    /file holds the bytes and comes la/,
  );
});

test('sizes', () => {
  assert.equal(parseBytes('4096', 'x'), 4096);
  assert.equal(parseBytes('2TiB', 'x'), 2 ** 41);
  assert.throws(() => parseBytes('9007199254740993', 'x'), /no number of bytes/);
});
