/** Disks behind HTTP and S3: honest servers, servers that lie, caches that survive and that do not. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import type { CacheSpec, HttpSpec } from '../stack/stack-spec.ts';
import { FakeServer } from '../../../test/peers/object-server.ts';
import { type HttpLayer, type HttpLayerOptions, openHttpLayer } from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-http-'));
after(() => rmSync(folder, { recursive: true }));
let files = 0;
const nextPath = (): string => join(folder, `f${files++}`);

const BLOCK = 65536;
const CONTENT = randomBytes(40 * BLOCK + 512);
const MEMORY: CacheSpec = { sizeBytes: 64 * BLOCK, blockBytes: BLOCK };

async function fake(t: TestContext, bytes = CONTENT): Promise<FakeServer> {
  const server = await FakeServer.start(Buffer.from(bytes));
  t.after(() => server.close());
  return server;
}

async function opened(
  t: TestContext,
  server: FakeServer,
  spec: Partial<HttpSpec> = {},
  options: HttpLayerOptions = {},
): Promise<HttpLayer> {
  const whole: HttpSpec = { kind: 'http', url: server.url, cache: MEMORY, ...spec };
  const layer = await openHttpLayer(whole, options);
  t.after(() => layer.close());
  return layer;
}

async function read(layer: HttpLayer, at: number, sizeBytes: number): Promise<Buffer> {
  const bytes = Buffer.alloc(sizeBytes);
  await layer.read(at, bytes);
  return bytes;
}

async function check(layer: HttpLayer, at: number, sizeBytes: number): Promise<void> {
  const bytes = await read(layer, at, sizeBytes);
  assert.ok(bytes.equals(CONTENT.subarray(at, at + sizeBytes)), `${sizeBytes} bytes at ${at}`);
}

for (const kind of ['memory', 'file']) {
  test(`random reads through a small cache in ${kind}`, async (t) => {
    const server = await fake(t);
    const cache = { sizeBytes: 20 * BLOCK, blockBytes: BLOCK };
    const where = kind === 'file' ? { path: nextPath() } : {};
    const layer = await opened(t, server, { cache: { ...cache, ...where } });
    server.delayMs = 1;
    assert.equal(layer.sizeBytes, CONTENT.length);
    assert.equal(layer.readOnly, true);
    await Promise.all(
      Array.from({ length: 4 }, async () => {
        for (let round = 0; round < 60; round++) {
          const most = round % 10 === 0 ? CONTENT.length / 512 : 300;
          const sizeBytes = 512 * (1 + Math.floor(Math.random() * (most - 1)));
          const at = 512 * Math.floor((Math.random() * (CONTENT.length - sizeBytes)) / 512);
          await check(layer, at, sizeBytes);
        }
      }),
    );
    await check(layer, CONTENT.length - 512, 512);
    const { cacheHits, cacheMisses, cacheBlocks, cacheFailures } = layer.counters();
    assert.ok(cacheHits! > 0);
    assert.ok(cacheMisses! > 41);
    assert.ok(cacheBlocks! <= 20, `${cacheBlocks} blocks`);
    assert.equal(cacheFailures, 0);
    assert.ok(server.mostUnderWay <= 8, `${server.mostUnderWay} requests at once`);
    assert.ok(server.mostUnderWay > 2, 'some were parallel');
  });
}

test('a block that many want is fetched once, and not again', async (t) => {
  const server = await fake(t);
  const layer = await opened(t, server);
  server.delayMs = 20;
  await Promise.all(Array.from({ length: 50 }, (_, i) => check(layer, 1024 * i, 512)));
  await check(layer, 8192, 16384);
  assert.deepEqual(server.ranges, ['bytes=0-511', 'bytes=0-65535']);
  const { cacheHits, cacheMisses, httpFetchedBytes } = layer.counters();
  assert.deepEqual([cacheHits, cacheMisses, httpFetchedBytes], [1, 50, BLOCK]);
});

test('who reads on in order is read ahead for; who jumps is not', async (t) => {
  const server = await fake(t);
  const layer = await opened(t, server);
  for (const at of [30, 10, 20]) await check(layer, at * BLOCK, BLOCK);
  assert.equal(layer.counters()['httpReadAheads'], 0);
  await check(layer, 21 * BLOCK, BLOCK);
  await new Promise((done) => setTimeout(done, 100));
  assert.equal(layer.counters()['httpReadAheads'], 4);
  const before = server.ranges.length;
  await check(layer, 22 * BLOCK + 512, 3 * BLOCK);
  assert.equal(server.ranges.length, before, 'all of it was there');
  await check(layer, 39 * BLOCK, BLOCK);
  await check(layer, 40 * BLOCK, 512); // the end: nothing is behind
});

test('what changes a disk is refused; a flush has nothing to do', async (t) => {
  const layer = await opened(t, await fake(t));
  const erofs = { errno: 30, message: /disk\.img: \w+ at byte 512: it is read-only/ };
  await assert.rejects(layer.write(512), erofs);
  await assert.rejects(layer.discard(512), erofs);
  await assert.rejects(layer.zero(512), erofs);
  await layer.flush();
  await assert.rejects(layer.resize(512), { code: 'ERR_VRING_DISK_RESIZE' });
  await assert.rejects(layer.control('snapshot', null), { code: 'ERR_VRING_DISK_CONTROL' });
  assert.deepEqual(await layer.extents(0, 512), [{ at: 0, sizeBytes: 512, kind: 'data' }]);
});

for (const looksAtTags of [true, false]) {
  test(`an object that is replaced is an error, for good (If-Match: ${looksAtTags})`, async (t) => {
    const server = await fake(t);
    server.looksAtTags = looksAtTags;
    const layer = await opened(t, server);
    await check(layer, 0, 512);
    server.object.etag = '"v2"';
    server.object.bytes = randomBytes(CONTENT.length);
    const problem = {
      errno: 5,
      message: /read at byte 131072: byte 131072: .*changed.*open the disk anew/,
    };
    await assert.rejects(read(layer, 2 * BLOCK, 512), problem);
    await check(layer, 512, 512); // what was kept is of the version that was opened
    server.object.etag = '"v1"';
    await assert.rejects(read(layer, 2 * BLOCK, 512), problem);
  });
}

test('without a strong tag the date pins, without either nothing does', async (t) => {
  const server = await fake(t);
  server.object.etag = null;
  const layer = await opened(t, server);
  let sent: string | undefined;
  server.intercept = (request) => {
    sent = request.headers['if-unmodified-since'];
    return false;
  };
  await check(layer, 0, 512);
  assert.equal(sent, server.object.lastModified);
  server.object.lastModified = 'Fri, 02 Jan 2026 00:00:00 GMT';
  await assert.rejects(read(layer, 2 * BLOCK, 512), /has changed/);
  server.object.lastModified = null;
  const code = 'ERR_VRING_HTTP_OBJECT';
  await assert.rejects(opened(t, server), { code, message: /neither ETag nor Last-Modified/ });
});

type Lie = (server: FakeServer, request: IncomingMessage, response: ServerResponse) => void;

/** Answers to a read of the first block, and what is made of them; all are `EIO` at once. */
const LIES: Readonly<Record<string, readonly [Lie, RegExp]>> = {
  'another range': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-range'] = `bytes 512-${BLOCK + 511}/${CONTENT.length}`;
        return body;
      }),
    /sent bytes 512-66047\/\d+, asked for were 0-65535/,
  ],
  'a shorter range': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-range'] = `bytes 0-511/${CONTENT.length}`;
        return body.subarray(0, 512);
      }),
    /sent bytes 0-511/,
  ],
  'no range': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        delete headers['content-range'];
        return body;
      }),
    /the Content-Range 'none'/,
  ],
  'nonsense for a range': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-range'] = 'bytes 0-x/*';
        return body;
      }),
    /the Content-Range 'bytes 0-x\/\*'/,
  ],
  'too much': [
    (s, q, r) => s.answer(q, r, (_, body) => Buffer.concat([body, body])),
    /more than the 65536 bytes/,
  ],
  'an endless body': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-length'] = String(2 ** 40);
        return body;
      }),
    /a body of 1099511627776 bytes/,
  ],
  'all of it': [(_, __, r) => r.writeHead(200).end(CONTENT), /has no ranges/],
  compressed: [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-encoding'] = 'gzip';
        return body;
      }),
    /the encoding gzip/,
  ],
  'another size': [
    (s, q, r) =>
      s.answer(q, r, (headers, body) => {
        headers['content-range'] = `bytes 0-${BLOCK - 1}/${CONTENT.length + 512}`;
        return body;
      }),
    /has changed/,
  ],
  'not allowed': [
    (_, __, r) => r.writeHead(403).end('<Error><Code>AccessDenied</Code>'),
    /status 403 \(AccessDenied\)/,
  ],
  'not found': [(_, __, r) => r.writeHead(404).end('x'.repeat(100_000)), /status 404/],
  'a redirect to nowhere': [(_, __, r) => r.writeHead(302).end(), /redirect to nowhere/],
  'a redirect to a file': [
    (_, __, r) => r.writeHead(302, { location: 'file:///etc/passwd' }).end(),
    /redirect to file:/,
  ],
  'a redirect to itself': [
    (s, __, r) => r.writeHead(302, { location: s.url }).end(),
    /more than 5 redirects/,
  ],
};

for (const [name, [lie, problem]] of Object.entries(LIES)) {
  test(`a server that sends ${name}`, async (t) => {
    const server = await fake(t);
    const layer = await opened(t, server, { timeoutSeconds: 10 });
    server.intercept = (request, response) => {
      lie(server, request, response);
      return true;
    };
    const start = performance.now();
    await assert.rejects(read(layer, 512, 512), (error: Error & { errno: number }) => {
      assert.ok(
        error.message.startsWith(`${server.url}: read at byte 512: byte 0: `),
        error.message,
      );
      assert.match(error.message, problem);
      assert.equal(error.errno, 5);
      return true;
    });
    assert.ok(performance.now() - start < 8000);
    server.intercept = null;
    // What changed stays changed; all else was about one answer.
    if (!/changed/.test(problem.source)) await check(layer, 512, 512);
  });
}

test('at first sight: no ranges, no sectors, nothing there, nobody there', async (t) => {
  const server = await fake(t);
  server.intercept = (_, response) => response.writeHead(200).end('all') !== null;
  await assert.rejects(opened(t, server), { code: 'ERR_VRING_HTTP_RANGES' });
  server.intercept = null;
  server.object.bytes = Buffer.alloc(1000);
  await assert.rejects(opened(t, server), /has 1000 bytes; a disk has whole sectors/);
  server.object.bytes = Buffer.alloc(100);
  await assert.rejects(opened(t, server), /has 100 bytes, up to 512 were to be read/);
  server.object.bytes = Buffer.alloc(0);
  await assert.rejects(opened(t, server), /or empty \(416\)/);
  const { url } = server;
  server.close();
  const startMs = performance.now();
  await assert.rejects(openHttpLayer({ kind: 'http', url, timeoutSeconds: 0.5 }), {
    code: 'ERR_VRING_HTTP_CONNECT',
    message: /ECONNREFUSED/,
  });
  assert.ok(performance.now() - startMs < 5000, 'it is tried for half a second');
  const ftp = openHttpLayer({ kind: 'http', url: 'ftp://x/y' });
  await assert.rejects(ftp, { code: 'ERR_VRING_CONFIG' });
});

test('a server that is about to be there: opening is tried again, what is wrong is not', async (t) => {
  const server = await fake(t);
  let count = 0;
  server.intercept = (request, response) => {
    count++;
    if (count === 1) response.writeHead(503).end();
    else if (count === 2) request.socket.destroy();
    return count <= 2;
  };
  await check(await opened(t, server), 512, 512);
  assert.equal(server.ranges.filter((range) => range === 'bytes=0-511').length, 3);
  count = 0;
  server.intercept = (_, response) => {
    count++;
    return response.writeHead(403).end() !== null;
  };
  await assert.rejects(opened(t, server), /status 403/);
  assert.equal(count, 1);
});

test('what may pass is tried again: overload, a broken body, a broken connection', async (t) => {
  const server = await fake(t);
  const layer = await opened(t, server);
  let count = 0;
  server.intercept = (request, response) => {
    switch (count++) {
      case 0:
        response.writeHead(503).end('SlowDown');
        return true;
      case 1:
        server.answer(request, response, (headers, body) => {
          headers['content-length'] = String(BLOCK);
          setTimeout(() => request.socket.destroy(), 20);
          return body.subarray(0, 1000);
        });
        return true;
      case 2:
        request.socket.destroy();
        return true;
      default:
        return false;
    }
  };
  await check(layer, 0, 512);
  assert.equal(layer.counters()['httpRetries'], 3);
});

test('a server that answers no more: ETIMEDOUT that names disk and offset, in time', async (t) => {
  const server = await fake(t);
  const layer = await opened(t, server, { timeoutSeconds: 0.4 });
  for (const [behave, why] of [
    [() => true, /no whole answer in time/],
    [(_: IncomingMessage, r: ServerResponse) => r.writeHead(500).end() !== null, /status 500/],
  ] as const) {
    server.intercept = behave;
    const start = performance.now();
    await assert.rejects(read(layer, 4096, 512), (error: Error & { errno: number }) => {
      assert.equal(error.errno, 110);
      assert.match(error.message, /disk\.img: read at byte 4096: byte 0: nothing within 0\.4 s/);
      assert.match(error.message, why);
      return true;
    });
    assert.ok(performance.now() - start < 5000);
  }
  // A byte now and then is no answer, either.
  server.intercept = (_, response) => {
    response.writeHead(206, { 'content-range': `bytes 0-${BLOCK - 1}/${CONTENT.length}` });
    const timer = setInterval(() => response.write('x'), 20);
    response.on('close', () => clearInterval(timer));
    return true;
  };
  await assert.rejects(read(layer, 0, 512), { errno: 110 });
  server.intercept = null;
  await check(layer, 0, 512);
});

test('a redirect is followed, and secrets in a URL are not shown', async (t) => {
  const server = await fake(t);
  server.intercept = (request, response) => {
    if (request.url === '/disk.img?secret=1') return false;
    return response.writeHead(307, { location: '/disk.img?secret=1' }).end() !== null;
  };
  const url = `${server.origin.replace('://', '://user:word@')}/start?token=2`;
  const layer = await opened(t, server, { url });
  await check(layer, 0, 512);
  assert.equal(layer.description, `${server.origin}/start?...`);
});

test('a cache in a file: found again, for the same version only, one user at a time', async (t) => {
  const server = await fake(t);
  const path = nextPath();
  const cache = { path, sizeBytes: 64 * BLOCK, blockBytes: BLOCK };
  const first = await openHttpLayer({ kind: 'http', url: server.url, cache });
  await check(first, 0, 10 * BLOCK);
  await check(first, 40 * BLOCK, 512); // the short one at the end
  await assert.rejects(opened(t, server, { cache }), /cache of another disk/);
  await first.close();

  const asked = server.ranges.length;
  const second = await openHttpLayer({ kind: 'http', url: server.url, cache });
  await check(second, 0, 10 * BLOCK);
  await check(second, 40 * BLOCK, 512);
  assert.equal(server.ranges.length, asked + 1, 'only the question what it is');
  await second.close();

  // Bytes of a slot that are not what they were: a torn write, a bad disk.
  const bytes = readFileSync(path);
  bytes[3 * BLOCK + 77]! ^= 1;
  writeFileSync(path, bytes);
  truncateSync(path, 9 * BLOCK);
  const third = await openHttpLayer({ kind: 'http', url: server.url, cache });
  await check(third, 0, 10 * BLOCK);
  assert.ok(third.counters()['cacheFailures']! >= 2, JSON.stringify(third.counters()));
  await check(third, 0, 10 * BLOCK);
  await third.close();

  server.object.etag = '"v2"';
  const fourth = await openHttpLayer({ kind: 'http', url: server.url, cache });
  assert.equal(fourth.counters()['cacheBlocks'], 0);
  await check(fourth, 0, 512);
  await fourth.close();

  server.object.etag = 'W/"weak"';
  for (let round = 0; round < 2; round++) {
    const weak = await openHttpLayer({ kind: 'http', url: server.url, cache });
    assert.equal(weak.counters()['cacheBlocks'], 0, 'nobody knows that it is the same');
    await check(weak, 0, 512);
    await weak.close();
  }
});

test('a cache in a file: any state of its files after a crash gives right bytes', async (t) => {
  const server = await fake(t);
  const path = nextPath();
  const cache = { path, sizeBytes: 8 * BLOCK, blockBytes: BLOCK };
  let failures = 0;
  for (let round = 0; round < 12; round++) {
    const layer = await openHttpLayer({ kind: 'http', url: server.url, cache });
    for (let count = 0; count < 12; count++) {
      await check(layer, BLOCK * Math.floor(Math.random() * 10), BLOCK);
    }
    await layer.close();
    // A power cut: sectors are from then, zeros, or from elsewhere. The index's first page is synced.
    for (const [name, first] of [
      [path, 0],
      [`${path}.index`, 4096],
    ] as const) {
      const bytes = readFileSync(name);
      for (let count = 0; count < 3; count++) {
        const sectors = Math.ceil((bytes.length - first) / 512);
        const [to, from] = [0, 0].map(() => first + 512 * Math.floor(Math.random() * sectors));
        if (round % 2 === 0) bytes.fill(0, to, Math.min(bytes.length, to! + 512));
        else if (name === path) bytes.copyWithin(to!, from!, from! + 512);
        else bytes.copyWithin(first, first + 40, first + 80); // the record of one slot twice
      }
      writeFileSync(name, bytes);
    }
    failures += layer.counters()['cacheFailures']!;
  }
  assert.ok(failures > 3, 'some slots were found to be wrong');
  assert.ok(statSync(path).size <= 8 * BLOCK);
});

test('a cache that is none, or cannot be', async (t) => {
  const server = await fake(t);
  const other = nextPath();
  writeFileSync(other, 'a letter');
  const cache = { path: other, sizeBytes: 64 * BLOCK };
  await assert.rejects(opened(t, server, { cache }), /is no cache of ours; give another path/);
  assert.equal(readFileSync(other, 'utf8'), 'a letter');
  const nowhere = { ...cache, path: join(folder, 'none', 'x') };
  await assert.rejects(opened(t, server, { cache: nowhere }), { code: 'ERR_VRING_CONFIG' });
  for (const [bad, problem] of [
    [{ sizeBytes: 1000 }, /cache\.sizeBytes/],
    [{ sizeBytes: 2 ** 30, blockBytes: 100_000 }, /cache\.blockBytes/],
    [{ sizeBytes: 2 ** 30, blockBytes: 2 ** 21 }, /cache\.blockBytes/],
  ] as const) {
    await assert.rejects(opened(t, server, { cache: bad }), problem);
  }
});

/** Whether a request is signed with the secret, by AWS's description and not by our code. */
function isSigned(request: IncomingMessage, secret: string): boolean {
  const pattern =
    /^AWS4-HMAC-SHA256 Credential=KEY\/(\d{8})\/here\/s3\/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})$/;
  const match = pattern.exec(request.headers.authorization ?? '');
  if (match === null) return false;
  const [, day, names, signature] = match as unknown as [string, string, string, string];
  for (const name of ['host', 'range', 'x-amz-date'])
    if (!names.split(';').includes(name)) return false;
  const amzDate = String(request.headers['x-amz-date']);
  if (
    !amzDate.startsWith(day) ||
    String(request.headers['x-amz-content-sha256']) !== createHash('sha256').digest('hex')
  )
    return false;
  let canonical = `GET\n${request.url!}\n\n`;
  for (const name of names.split(';')) canonical += `${name}:${String(request.headers[name])}\n`;
  canonical += `\n${names}\n${String(request.headers['x-amz-content-sha256'])}`;
  const hash = createHash('sha256').update(canonical).digest('hex');
  const toSign = `AWS4-HMAC-SHA256\n${amzDate}\n${day}/here/s3/aws4_request\n${hash}`;
  const hmac = (key: string | Buffer, text: string): Buffer =>
    createHmac('sha256', key).update(text).digest();
  const key = hmac(hmac(hmac(hmac(`AWS4${secret}`, day), 'here'), 's3'), 'aws4_request');
  return hmac(key, toSign).toString('hex') === signature;
}

test('s3: signed with the key of a file, refused with another, unsigned without', async (t) => {
  const server = await fake(t);
  let isOpen = false;
  let withPin = 0;
  server.intercept = (request, response) => {
    if (request.headers['if-match'] !== undefined) withPin++;
    if (isOpen ? request.headers.authorization === undefined : isSigned(request, 'right'))
      return false;
    response.writeHead(403).end('<?xml?><Error><Code>SignatureDoesNotMatch</Code></Error>');
    return true;
  };
  const credentialsFile = nextPath();
  const spec = {
    kind: 's3',
    endpoint: server.origin,
    region: 'here',
    bucket: 'disks',
    key: 'vm (1)/a+b é.img',
    credentialsFile,
    cache: MEMORY,
  } as const;
  writeFileSync(credentialsFile, 'KEY\nright\n');
  const layer = await openHttpLayer(spec);
  t.after(() => layer.close());
  await check(layer, 512, 3 * BLOCK);
  assert.equal(new Set(server.paths).size, 1);
  assert.equal(server.paths[0], '/disks/vm%20%281%29/a%2Bb%20%C3%A9.img');
  assert.equal(withPin, 4);

  writeFileSync(credentialsFile, 'KEY\nwrong\n');
  await assert.rejects(openHttpLayer(spec), /status 403 \(SignatureDoesNotMatch\)/);
  isOpen = true;
  const { credentialsFile: _, ...anonymous } = spec;
  for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']) delete process.env[name];
  const open = await openHttpLayer(anonymous);
  t.after(() => open.close());
  await check(open, 512, 512);

  isOpen = false;
  writeFileSync(credentialsFile, 'KEY\nright\n');
  const location = 'https://disks.s3.elsewhere.example.org/x';
  server.intercept = (_, response) => response.writeHead(301, { location }).end() !== null;
  await assert.rejects(openHttpLayer(spec), /is at disks\.s3\.elsewhere\.example\.org: correct/);
});

test('https: with a certificate that is known, and with one that is not', async (t) => {
  if (!requirePeer(t, 'openssl')) return;
  const [key, cert] = [nextPath(), nextPath()];
  const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=x'];
  const names = ['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', cert];
  execFileSync('openssl', [...request, ...names], { stdio: 'ignore' });
  const tls = { key: readFileSync(key), cert: readFileSync(cert) };
  const server = await FakeServer.start(Buffer.from(CONTENT), tls);
  t.after(() => server.close());
  const layer = await opened(t, server, {}, { ca: readFileSync(cert) });
  await check(layer, 0, 512);
  await assert.rejects(opened(t, server), {
    code: 'ERR_VRING_HTTP_CONNECT',
    message: /self-signed/,
  });
  server.intercept = (_, response) =>
    response.writeHead(302, { location: server.url.replace('https', 'http') }).end() !== null;
  await assert.rejects(read(layer, 2 * BLOCK, 512), /redirect to plain http/);
});
