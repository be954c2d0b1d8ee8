/** Signatures against the examples that AWS has published. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { S3Spec } from '../stack/stack-spec.ts';
import { locateS3 } from './s3-location.ts';
import { amzDateOf, authorizationV4, EMPTY_BODY_SHA256, uriEncode } from './sigv4.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-sigv4-'));
after(() => rmSync(folder, { recursive: true }));

test('"GET Object" of the S3 manual', () => {
  const credentials = {
    accessKey: 'AKIAIOSFODNN7EXAMPLE',
    secretKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
  };
  const headers = {
    Range: 'bytes=0-9',
    'x-amz-content-sha256': EMPTY_BODY_SHA256,
    'x-amz-date': '20130524T000000Z',
  };
  const url = new URL('https://examplebucket.s3.amazonaws.com/test.txt');
  const scope = { region: 'us-east-1', service: 's3' };
  assert.equal(
    authorizationV4({ method: 'GET', url, headers }, scope, credentials, '20130524T000000Z'),
    'AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, ' +
      'SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, ' +
      'Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
  );
});

test('"get-vanilla" and "get-vanilla-query-order-key-case" of the test suite', () => {
  const credentials = {
    accessKey: 'AKIDEXAMPLE',
    secretKey: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY',
  };
  const amzDate = '20150830T123600Z';
  const scope = { region: 'us-east-1', service: 'service' };
  for (const [query, signature] of [
    ['', '5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31'],
    [
      '?Param2=value2&Param1=value1',
      'b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500',
    ],
  ] as const) {
    const url = new URL(`https://example.amazonaws.com/${query}`);
    const request = { method: 'GET', url, headers: { 'X-Amz-Date': amzDate } };
    const header = authorizationV4(request, scope, credentials, amzDate);
    assert.ok(header.endsWith(`SignedHeaders=host;x-amz-date, Signature=${signature}`), header);
  }
});

test('dates and names', () => {
  assert.equal(amzDateOf(new Date(Date.UTC(2013, 4, 24))), '20130524T000000Z');
  assert.equal(uriEncode("a b~c'(!)*é/"), 'a%20b~c%27%28%21%29%2A%C3%A9%2F');
});

const SPEC: S3Spec = {
  kind: 's3',
  endpoint: 'https://s3.example.org:9000/base/',
  region: 'r',
  bucket: 'disks',
  key: 'vm 1/root (new).img',
};

test('where an object is', () => {
  const path = '/vm%201/root%20%28new%29.img';
  assert.equal(locateS3(SPEC, {}).url.href, `https://s3.example.org:9000/base/disks${path}`);
  const virtual = locateS3({ ...SPEC, addressing: 'virtual-host' }, {});
  assert.equal(virtual.url.href, `https://disks.s3.example.org:9000/base${path}`);
  for (const [part, problem] of [
    [{ endpoint: 'ftp://x' }, /s3\.endpoint/],
    [{ endpoint: 'https://u:p@x' }, /has a user/],
    [{ bucket: 'A/b' }, /s3\.bucket/],
    [{ key: '' }, /s3\.key/],
    [{ key: 'a/../b' }, /s3\.key/],
  ] as const) {
    assert.throws(() => locateS3({ ...SPEC, ...part }, {}), problem);
  }
});

test('who signs', () => {
  const signedBy = (spec: Partial<S3Spec>, environment: NodeJS.ProcessEnv): string => {
    const { url, sign } = locateS3({ ...SPEC, ...spec }, environment);
    if (sign === null) return 'nobody';
    const headers = sign(url, { range: 'bytes=0-0' });
    const token = headers['x-amz-security-token'];
    const key = /Credential=(\w+)/.exec(headers['authorization']!)![1]!;
    return token === undefined ? key : `${key} with ${token}`;
  };
  const both = { AWS_ACCESS_KEY_ID: 'E', AWS_SECRET_ACCESS_KEY: 's' };
  assert.equal(signedBy({}, {}), 'nobody');
  assert.equal(signedBy({}, both), 'E');
  assert.equal(signedBy({}, { ...both, AWS_SESSION_TOKEN: 't' }), 'E with t');
  assert.throws(() => signedBy({}, { AWS_ACCESS_KEY_ID: 'E' }), /set both, or none/);
  const file = join(folder, 'keys');
  writeFileSync(file, 'F\nsecret/+=\n');
  assert.equal(signedBy({ credentialsFile: file }, both), 'F', 'a file counts more');
  writeFileSync(file, 'F\nsecret\ntoken\n');
  assert.equal(signedBy({ credentialsFile: file }, both), 'F with token');
  writeFileSync(file, 'aws_access_key_id = F\n');
  assert.throws(() => signedBy({ credentialsFile: file }, {}), /expected are two lines/);
  assert.throws(() => signedBy({ credentialsFile: join(folder, 'none') }, {}), /ENOENT/);
});
