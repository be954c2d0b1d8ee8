/** Servers that lie, and clients that attack: typed errors, the connection ends, nobody else notices. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import {
  encodeNbdChunk,
  encodeNbdOption,
  encodeNbdOptionReply,
  encodeNbdRequest,
  encodeNbdSimpleReply,
  encodeNbdString,
  NBD_EIO,
  NBD_ESHUTDOWN,
  NBD_OPTION_MAGIC,
} from '../../wire/nbd.ts';
import { NullLayer } from '../layer/null-layer.ts';
import { ByteStream } from './byte-stream.ts';
import { type BlockStatus, NbdConnection } from './client-connection.ts';
import { NbdExport, openNbdLayer, parseNbdUri } from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-nbd-evil-'));
after(() => rmSync(folder, { recursive: true }));
let sockets = 0;

const GREETING = Buffer.from('4e42444d4147494349484156454f50540003', 'hex');
const UNFIXED = Buffer.from('4e42444d4147494349484156454f50540000', 'hex');
const oldstyle = (sizeBytes: bigint): Buffer =>
  Buffer.concat([
    Buffer.from('4e42444d414749430000420281861253', 'hex'),
    words([64, sizeBytes], [32, 1]),
    Buffer.alloc(124),
  ]);
const DISK_BYTES = 2 ** 20;
const READ_AT = 4096;
const READ_BYTES = 8192;

function words(...values: (readonly [bits: 16 | 32 | 64, value: number | bigint])[]): Buffer {
  return Buffer.concat(
    values.map(([bits, value]) => {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(BigInt(value), 0);
      return bytes.subarray(8 - bits / 8);
    }),
  );
}

const exportInfo = (sizeBytes: number, flags = 0xed): Buffer =>
  words([16, 0], [64, sizeBytes], [16, flags]);

/** A whole, honest handshake with structured replies and one context. */
async function honestHandshake(socket: Socket, stream: ByteStream): Promise<void> {
  socket.write(GREETING);
  await stream.take(4);
  for (let option = 0; option !== 7;) {
    const head = await stream.take(16);
    option = head.readUInt32BE(8);
    await stream.take(head.readUInt32BE(12));
    if (option === 7) socket.write(encodeNbdOptionReply(7, 3, exportInfo(DISK_BYTES)));
    if (option === 10) {
      const context = Buffer.concat([words([32, 9]), Buffer.from('base:allocation')]);
      socket.write(encodeNbdOptionReply(10, 4, context));
    }
    socket.write(encodeNbdOptionReply(option, 1));
  }
}

type Script = (socket: Socket, stream: ByteStream) => Promise<unknown>;

/** Runs `script` for every connection; returns a URI. */
function evilServer(t: TestContext, script: Script): string {
  const path = join(folder, `e${sockets++}`);
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.on('error', () => {});
    script(socket, new ByteStream(socket)).catch(() => {}); // the client has hung up
  });
  server.listen(path);
  t.after(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  return `nbd+unix:///?socket=${path}`;
}

/** Answers to options, by their number; null for one that is never answered. */
const HANDSHAKES: Readonly<Record<string, readonly [Script, RegExp]>> = {
  'another protocol': [
    async (s) => s.write('HTTP/1.1 400 Bad Request\r\n\r\n'),
    /first words are 'HTTP\/1.1', not NBDMAGIC/,
  ],
  'terminal escapes': [async (s) => s.write('\x1b[2J\x1b[31m!!!!!!!!!!!!!!!'), /'\?\[2J\?\[31'/],
  oldstyle: [
    async (s) => s.write(Buffer.from('4e42444d4147494300000420281861530000', 'hex')),
    /IHAVEOPT is missing/,
  ],
  'an oldstyle size over 2^53': [
    async (s) => s.write(oldstyle(2n ** 60n)),
    /1152921504606846976 bytes; 2\^53-1 are possible/,
  ],
  'an oldstyle size of no sectors': [async (s) => s.write(oldstyle(1000n)), /has 1000 bytes; a/],
  'oldstyle, and nothing behind it': [
    async (s) => s.end(oldstyle(2n ** 20n).subarray(0, 100)),
    /hung up|connection ended/,
  ],
  'newstyle with a size over 2^53': [
    async (s) => s.write(Buffer.concat([UNFIXED, words([64, 2n ** 60n], [16, 1])])),
    /1152921504606846976 bytes; 2\^53-1 are possible/,
  ],
  'an answer without its magic': [
    async (s) => s.write(Buffer.concat([GREETING, Buffer.alloc(20)])),
    /magic of a reply to option 8 is wrong/,
  ],
  'an answer to something else': [
    async (s) => s.write(Buffer.concat([GREETING, encodeNbdOptionReply(7, 1)])),
    /answers option 7, 8 was asked/,
  ],
  'an endless answer': [
    async (s) => s.write(Buffer.concat([GREETING, encodeNbdOptionReply(8, 1, Buffer.alloc(9000))])),
    /reply of 9000 bytes to option 8/,
  ],
  'a hundred contexts': [
    async (s) => {
      const context = encodeNbdOptionReply(
        10,
        4,
        Buffer.concat([words([32, 1]), Buffer.from('x:y')]),
      );
      const hundred = Array.from({ length: 100 }, () => context);
      s.write(Buffer.concat([GREETING, encodeNbdOptionReply(8, 1), ...hundred]));
    },
    /more than 64 replies to SET_META_CONTEXT/,
  ],
  'GO without a size': [
    async (s) => s.write(withGo([encodeNbdOptionReply(7, 1)])),
    /without a size/,
  ],
  'a size over 2^53': [
    async (s) =>
      s.write(withGo([encodeNbdOptionReply(7, 3, Buffer.from('0000ffffffffffffffff0001', 'hex'))])),
    /18446744073709551615 bytes/,
  ],
  'a size of no sectors': [
    async (s) => s.write(withGo(sized(1000))),
    /has 1000 bytes; a disk has whole/,
  ],
  'no size': [async (s) => s.write(withGo(sized(0))), /has 0 bytes/],
  'blocks of three bytes': [
    async (s) =>
      s.write(withGo([encodeNbdOptionReply(7, 3, words([16, 3], [32, 3], [32, 3], [32, 9]))])),
    /block sizes from 3 to 9/,
  ],
  'a refusal with a long text': [
    async (s) => s.write(withGo([encodeNbdOptionReply(7, 0x80000006, Buffer.alloc(8000, 'x'))])),
    /no export "": 'x{200}\.\.\.'/,
  ],
  'TLS wanted': [
    async (s) => s.write(Buffer.concat([GREETING, encodeNbdOptionReply(8, 0x80000005)])),
    /wants TLS; use nbds/,
  ],
  'one byte at a time': [
    async (s) => {
      for (const byte of Buffer.concat([GREETING, Buffer.alloc(1000)])) {
        if (s.destroyed) return;
        s.write(Buffer.of(byte));
        await new Promise((done) => setTimeout(done, 50));
      }
    },
    /no handshake within 500 ms/,
  ],
  silence: [async () => {}, /no handshake within 500 ms/],
  'hanging up': [async (s) => s.end(), /hung up/],
};

function sized(sizeBytes: number): Buffer[] {
  return [encodeNbdOptionReply(7, 3, exportInfo(sizeBytes)), encodeNbdOptionReply(7, 1)];
}

function withGo(replies: readonly Buffer[]): Buffer {
  return Buffer.concat([
    GREETING,
    encodeNbdOptionReply(8, 1),
    encodeNbdOptionReply(10, 1),
    ...replies,
  ]);
}

for (const [name, [script, problem]] of Object.entries(HANDSHAKES)) {
  test(`a server's handshake: ${name}`, async (t) => {
    const uri = evilServer(t, script);
    const start = performance.now();
    await assert.rejects(
      openNbdLayer({ uri, timeoutSeconds: /no handshake/.test(problem.source) ? 0.5 : 5 }),
      (error: Error & { code: string }) => {
        assert.match(error.message, problem);
        assert.match(error.code, /^ERR_VRING_NBD_/);
        assert.ok(error.message.startsWith(uri), 'names the disk');
        return true;
      },
    );
    assert.ok(performance.now() - start < 4500);
  });
}

type Reply = (handle: bigint) => readonly Buffer[];

const chunk = (handle: bigint, type: number, data: Buffer, done = true): Buffer =>
  Buffer.concat([
    encodeNbdChunk({ flags: done ? 1 : 0, type, handle, sizeBytes: data.length }, 0),
    data,
  ]);
const dataChunk = (handle: bigint, at: number, sizeBytes: number, done = true): Buffer =>
  chunk(handle, 1, Buffer.concat([words([64, at]), Buffer.alloc(sizeBytes, 5)]), done);
const holeChunk = (handle: bigint, at: number, sizeBytes: number, done = true): Buffer =>
  chunk(handle, 2, words([64, at], [32, sizeBytes]), done);
const endless = (handle: bigint, sizeBytes: number, type: number): Buffer =>
  encodeNbdChunk({ flags: 1, type, handle, sizeBytes }, 0);

/** What a server answers to a read of READ_BYTES at READ_AT. */
const READS: Readonly<Record<string, readonly [Reply, RegExp]>> = {
  'another magic': [() => [Buffer.alloc(20, 1)], /magic of a reply is 0x1010101/],
  'a handle that nobody asked for': [
    (h) => [dataChunk(h + 5n, READ_AT, READ_BYTES)],
    /reply to handle/,
  ],
  'two replies': [
    (h) => [dataChunk(h, READ_AT, READ_BYTES), dataChunk(h, READ_AT, READ_BYTES)],
    /^$/, // the first is right; the second ends the connection
  ],
  'a simple reply': [(h) => [encodeNbdSimpleReply(0, h)], /simple reply where chunks were agreed/],
  'a gap': [(h) => [dataChunk(h, READ_AT, 4096)], /has gaps/],
  'a gap in the middle': [
    (h) => [dataChunk(h, READ_AT, 2048, false), dataChunk(h, READ_AT + 4096, 4096)],
    /has gaps/,
  ],
  'nothing at all': [(h) => [chunk(h, 0, Buffer.alloc(0))], /has gaps/],
  'two chunks over each other': [
    (h) => [dataChunk(h, READ_AT, 4608, false), holeChunk(h, READ_AT + 4096, 4096)],
    /a chunk over another one: 4096 bytes at 8192/,
  ],
  'a chunk within another': [
    (h) => [dataChunk(h, READ_AT, READ_BYTES, false), holeChunk(h, READ_AT + 512, 512)],
    /a chunk over another one/,
  ],
  'a chunk before': [(h) => [dataChunk(h, READ_AT - 512, 1024)], /outside of what was asked/],
  'a chunk behind': [(h) => [holeChunk(h, READ_AT + 4096, 8192)], /outside of what was asked/],
  'a chunk far away': [(h) => [chunk(h, 1, Buffer.alloc(520, 0xff))], /at 18446744073709551615/],
  'a hole of 4 GiB': [(h) => [holeChunk(h, READ_AT, 2 ** 32 - 1)], /outside of what was asked/],
  'an empty chunk': [(h) => [dataChunk(h, READ_AT, 0)], /an empty chunk/],
  'data of 4 GiB': [
    (h) => [endless(h, 2 ** 32 - 1, 1), words([64, READ_AT])],
    /outside of what was/,
  ],
  'a hole of the wrong size': [(h) => [endless(h, 13, 2), Buffer.alloc(13)], /hole chunk of 13/],
  'an error of 1 MiB': [(h) => [endless(h, 2 ** 20, 0x8001)], /an error of 1048576 bytes/],
  'an error that is none': [
    (h) => [chunk(h, 0x8001, words([32, 0], [16, 0]))],
    /error that is none/,
  ],
  'an error whose text is longer than itself': [
    (h) => [chunk(h, 0x8001, words([32, 5], [16, 60000]))],
    /error that is none/,
  ],
  'a type that does not exist': [(h) => [chunk(h, 77, Buffer.alloc(0))], /chunk of type 77/],
  'a status': [
    (h) => [chunk(h, 5, words([32, 9], [32, 512], [32, 0]))],
    /block status of 12 bytes/,
  ],
  'a thousand chunks': [
    (h) => Array.from({ length: 1000 }, () => chunk(h, 0x8001, words([32, 5], [16, 0]), false)),
    /33 chunks for 8192 bytes/,
  ],
};

for (const [name, [reply, problem]] of Object.entries(READS)) {
  test(`a server's reply to a read: ${name}`, async (t) => {
    const uri = evilServer(t, async (socket, stream) => {
      await honestHandshake(socket, stream);
      for (;;) {
        const head = await stream.take(28);
        for (const part of reply(head.readBigUInt64BE(8))) socket.write(part);
      }
    });
    const end = Promise.withResolvers<Error>();
    const connection = await open(uri, end.resolve);
    const read = connection.request({
      type: 0,
      flags: 0,
      at: READ_AT,
      sizeBytes: READ_BYTES,
      into: Buffer.alloc(READ_BYTES),
    });
    if (name === 'two replies') {
      await read;
      assert.match((await end.promise).message, /reply to handle 1/);
      return;
    }
    await assert.rejects(read, { code: 'ERR_VRING_NBD_PROTOCOL', message: problem });
    assert.match((await end.promise).message, problem);
    // A layer tries once more, and then says so, with disk and offset.
    const disk = await openNbdLayer({ uri, timeoutSeconds: 5 });
    await assert.rejects(
      disk.read(READ_AT, Buffer.alloc(READ_BYTES)),
      (error: Error & { errno: number }) => {
        assert.equal(error.errno, 5);
        assert.ok(error.message.startsWith(`${uri}: read at byte 4096: `), error.message);
        return true;
      },
    );
    await disk.close();
  });
}

function open(uri: string, onEnd: (error: Error) => void = () => {}): Promise<NbdConnection> {
  return NbdConnection.open({ address: parseNbdUri(uri), timeoutMs: 1000 }, onEnd);
}

/** A server that is honest but for one answer. */
function answering(t: TestContext, reply: (handle: bigint) => readonly Buffer[]): string {
  return evilServer(t, async (socket, stream) => {
    await honestHandshake(socket, stream);
    for (;;) {
      const head = await stream.take(28);
      for (const part of reply(head.readBigUInt64BE(8))) socket.write(part);
    }
  });
}

test("a server's block status that is wrong", async (t) => {
  const command = { type: 7, flags: 0, at: 0, sizeBytes: 65536 };
  for (const [words_, problem] of [
    [words([32, 3], [32, 512], [32, 0]), /context 3/],
    [words([32, 9], [32, 0], [32, 0]), /extent of 0 bytes/],
    [words([32, 9], [32, 512]), /block status of 8 bytes/],
  ] as const) {
    const connection = await open(answering(t, (h) => [chunk(h, 5, words_)]));
    await assert.rejects(connection.request(command), { message: problem });
  }
  const tooMuch = await open(answering(t, (h) => [endless(h, 2 ** 30 + 4, 5)]));
  await assert.rejects(tooMuch.request(command), { message: /block status of 1073741828 bytes/ });
  const fine = await open(
    answering(t, (h) => [chunk(h, 5, words([32, 9], [32, 2 ** 31], [32, 3]))]),
  );
  const status: BlockStatus[] = [{ sizeBytes: 2 ** 31, flags: 3 }];
  assert.deepEqual(await fine.request(command), status, 'the last one may be longer');
  for (const connection of [tooMuch, fine]) connection.drop(new Error('the end'));
});

test("a server's errors: of a request, of a read in the middle, of a shutdown", async (t) => {
  const read = { type: 0, flags: 0, at: 0, sizeBytes: 1024 };
  const text = Buffer.from('bad \x1b[31mmedium');
  const error = Buffer.concat([words([32, NBD_EIO], [16, text.length]), text]);
  const bad = await open(
    answering(t, (h) => [dataChunk(h, 0, 512, false), chunk(h, 0x8001, error)]),
  );
  const message = /error 5: 'bad \?\[31mmedium'/;
  await assert.rejects(bad.request({ ...read, into: Buffer.alloc(1024) }), { errno: 5, message });
  assert.equal(bad.failure, null, 'the connection lives on');
  const ending = await open(answering(t, (h) => [encodeNbdSimpleReply(NBD_ESHUTDOWN, h)]));
  await assert.rejects(ending.request({ ...read, into: Buffer.alloc(1024) }), {
    code: 'ERR_VRING_NBD_CLOSED',
  });
  assert.notEqual(ending.failure, null);
  bad.drop(new Error('the end'));
});

test('a server that falls silent: each request ends in its time, late data touch nothing', async (t) => {
  const answer = Promise.withResolvers<void>();
  const uri = evilServer(t, async (socket, stream) => {
    await honestHandshake(socket, stream);
    const head = await stream.take(28);
    const handle = head.readBigUInt64BE(8);
    // Half of a read, and the rest when nobody waits any more.
    socket.write(dataChunk(handle, 0, 4096).subarray(0, 1000));
    await new Promise((done) => setTimeout(done, 600));
    socket.write(dataChunk(handle, 0, 4096).subarray(1000));
    setTimeout(answer.resolve, 50);
  });
  const disk = await openNbdLayer({ uri, timeoutSeconds: 0.3 });
  t.after(() => disk.close());
  const into = Buffer.alloc(4096);
  await assert.rejects(disk.read(0, into), { errno: 110, message: /the NBD server is silent/ });
  into.fill(9);
  await answer.promise;
  assert.ok(into.every((byte) => byte === 9));
});

test('closing does not wait for a server that lets us wait', async (t) => {
  let count = 0;
  const connected = Promise.withResolvers<Socket>();
  const uri = evilServer(t, async (socket, stream) => {
    if (count++ > 0) return connected.resolve(socket); // silent from the second on
    await honestHandshake(socket, stream);
    await stream.take(28);
    socket.destroy();
  });
  const disk = await openNbdLayer({ uri, timeoutSeconds: 5 });
  const read = assert.rejects(disk.read(0, Buffer.alloc(512)), /closed/);
  const socket = await connected.promise;
  const start = performance.now();
  await disk.close();
  await read;
  if (!socket.destroyed) await new Promise((done) => socket.once('close', done));
  assert.ok(performance.now() - start < 2000);
});

const hello = words([32, 3]);
const request = (fields: Partial<Parameters<typeof encodeNbdRequest>[0]>): Buffer =>
  encodeNbdRequest({ flags: 0, type: 0, handle: 1n, at: 0n, sizeBytes: 512, ...fields });
const begin = Buffer.concat([
  hello,
  encodeNbdOption(7, Buffer.concat([encodeNbdString(''), words([16, 0])])),
]);

/** What a client sends; all of it ends its connection, and is counted as bad. */
const CLIENTS: Readonly<Record<string, Buffer>> = {
  'unknown flags': words([32, 0xffff]),
  'an option without its magic': Buffer.concat([hello, Buffer.alloc(16)]),
  'an option of 4 GiB': Buffer.concat([
    hello,
    words([64, NBD_OPTION_MAGIC], [32, 7], [32, 2 ** 32 - 1]),
  ]),
  'a thousand options': Buffer.concat([
    hello,
    ...Array.from({ length: 1000 }, () => encodeNbdOption(99)),
  ]),
  'an export that is not there': Buffer.concat([hello, encodeNbdOption(1, Buffer.from('other'))]),
  'a request without its magic': Buffer.concat([begin, Buffer.alloc(28)]),
  'a write of 4 GiB': Buffer.concat([begin, request({ type: 1, sizeBytes: 2 ** 32 - 1 })]),
};

async function victim(t: TestContext): Promise<{ server: NbdExport; path: string }> {
  const path = join(folder, `v${sockets++}`);
  const server = await NbdExport.start(new NullLayer(DISK_BYTES, false), { at: { socket: path } });
  t.after(() => server.close());
  return { server, path };
}

for (const [name, bytes] of Object.entries(CLIENTS)) {
  test(`a client: ${name}`, async (t) => {
    const { server, path } = await victim(t);
    const socket = connect(path);
    socket.on('error', () => {});
    socket.resume();
    socket.write(bytes);
    await new Promise((done) => socket.once('close', done));
    assert.equal(server.status().badClients, 1);
    const disk = await openNbdLayer({ uri: server.status().uri });
    await disk.read(0, Buffer.alloc(512));
    await disk.close();
  });
}

test('options that are refused and do no harm', async (t) => {
  const { server, path } = await victim(t);
  const socket = connect(path);
  t.after(() => socket.destroy());
  const stream = new ByteStream(socket);
  await stream.take(18);
  socket.write(hello);
  const context = encodeNbdString('base:allocation');
  for (const [option, data, expected] of [
    [3, Buffer.alloc(1), 0x80000003],
    [5, Buffer.alloc(0), 0x80000001], // STARTTLS
    [7, Buffer.alloc(3), 0x80000003],
    [7, words([32, 2 ** 32 - 1]), 0x80000003],
    [7, Buffer.concat([encodeNbdString('x'), words([16, 0])]), 0x80000006],
    [7, Buffer.concat([words([32, 2]), Buffer.from([0xff, 0xfe]), words([16, 0])]), 0x80000003],
    [6, Buffer.alloc(100_000), 0x80000009],
    [10, Buffer.concat([encodeNbdString(''), words([32, 1]), context]), 0x80000003], // too early
    [9, Buffer.concat([encodeNbdString(''), words([32, 2 ** 32 - 1]), context]), 0x80000003],
    [11, Buffer.alloc(0), 0x80000001], // EXTENDED_HEADERS
  ] as const) {
    socket.write(encodeNbdOption(option, data));
    const head = await stream.take(20);
    assert.equal(head.readUInt32BE(8), option);
    assert.equal(head.readUInt32BE(12), expected, `option ${option}`);
    await stream.take(head.readUInt32BE(16));
  }
  assert.equal(server.status().connections, 1);
});

test('requests that are refused and do no harm', async (t) => {
  const { server } = await victim(t);
  const connection = await open(server.status().uri);
  const into = Buffer.alloc(512);
  for (const [fields, errno] of [
    [{ type: 0, at: DISK_BYTES, into }, 22],
    [{ type: 0, at: 2 ** 52, into }, 22],
    [{ type: 0, at: 256, into }, 22],
    [{ type: 0, flags: 0x8000, into }, 22],
    [{ type: 1, at: DISK_BYTES - 256, from: into }, 28],
    [{ type: 6, sizeBytes: 2 ** 32 - 1 }, 28],
    [{ type: 4, sizeBytes: 2 ** 32 - 1 }, 22],
    [{ type: 4, sizeBytes: 0 }, 22],
    [{ type: 3, at: 512 }, 22],
    [{ type: 99 }, 22],
  ] as const) {
    const command = { flags: 0, at: 0, sizeBytes: 512, ...fields };
    await assert.rejects(connection.request(command), { errno }, JSON.stringify(fields));
  }
  await connection.request({ type: 0, flags: 0, at: 0, sizeBytes: 512, into });
  await connection.close();
  assert.equal(server.status().failedRequests, 10);
});

test('a client that does not read its replies waits, and the memory of the server is bounded', async (t) => {
  const { server, path } = await victim(t);
  const socket = connect(path);
  t.after(() => socket.destroy());
  socket.write(begin);
  const before = process.memoryUsage().arrayBuffers;
  for (let count = 0; count < 2000; count++) {
    socket.write(request({ handle: BigInt(count), sizeBytes: 2 ** 20 }));
  }
  await new Promise((done) => setTimeout(done, 300));
  const { requests } = server.status();
  assert.ok(requests >= 32 && requests < 100, `${requests} requests were taken`);
  const held = process.memoryUsage().arrayBuffers - before;
  assert.ok(held < 80 * 2 ** 20, `${held} bytes are held`);
  const other = await openNbdLayer({ uri: server.status().uri });
  await other.read(0, Buffer.alloc(512));
  await other.close();
});
