/**
 * Servers from before 2017: without NBD_OPT_GO, without structured replies, newstyle that is not
 * fixed, oldstyle. They end a handshake in their own ways and are disks as any other.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import {
  decodeNbdRequest,
  encodeNbdOptionReply,
  encodeNbdSimpleReply,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_EINVAL,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_FLUSH,
  NBD_MAGIC,
  NBD_OLDSTYLE_MAGIC,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTION_MAGIC,
  NBD_REP_ERR_UNSUP,
  NBD_REQUEST_BYTES,
} from '../../wire/nbd.ts';
import { ByteStream } from './byte-stream.ts';
import { openNbdLayer } from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-nbd-old-'));
after(() => rmSync(folder, { recursive: true }));
let sockets = 0;

const DISK_BYTES = 2 ** 20;
const FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
const NAME = 'the disk';

type Kind = {
  /** Handshake flags; null: oldstyle. */
  readonly flags: number | null;
};

const KINDS: Readonly<Record<string, Kind>> = {
  'fixed newstyle without GO': { flags: 3 },
  'fixed newstyle without GO, and with the zeroes': { flags: 1 },
  'newstyle that is not fixed': { flags: 0 },
  'newstyle that is not fixed, without the zeroes': { flags: 2 },
  oldstyle: { flags: null },
};

class OldServer {
  readonly bytes = Buffer.alloc(DISK_BYTES);
  readonly path = join(folder, `s${sockets++}`);
  /** Options that it was asked, in order. */
  readonly asked: number[] = [];
  flushes = 0;
  readonly #kind: Kind;
  readonly #open = new Set<Socket>();

  constructor(t: TestContext, kind: Kind) {
    this.#kind = kind;
    const server = createServer((socket) => {
      this.#open.add(socket);
      socket.on('error', () => {});
      this.#serve(socket, new ByteStream(socket)).catch(() => socket.destroy());
    });
    server.listen(this.path);
    t.after(() => {
      server.close();
      this.hangUp();
    });
  }

  hangUp(): void {
    for (const socket of this.#open) socket.destroy();
    this.#open.clear();
  }

  async #serve(socket: Socket, stream: ByteStream): Promise<void> {
    const { flags } = this.#kind;
    const head = Buffer.alloc(flags === null ? 152 : 18);
    head.writeBigUInt64BE(NBD_MAGIC, 0);
    head.writeBigUInt64BE(flags === null ? NBD_OLDSTYLE_MAGIC : NBD_OPTION_MAGIC, 8);
    if (flags === null) {
      head.writeBigUInt64BE(BigInt(DISK_BYTES), 16);
      head.writeUInt16BE(FLAGS, 26);
    } else {
      head.writeUInt16BE(flags, 16);
    }
    socket.write(head);
    if (flags !== null && !(await this.#options(socket, stream, flags))) return void socket.end();
    for (;;) await this.#request(socket, stream);
  }

  async #options(socket: Socket, stream: ByteStream, flags: number): Promise<boolean> {
    assert.equal((await stream.take(4)).readUInt32BE(0), flags);
    for (;;) {
      const head = await stream.take(16);
      const option = head.readUInt32BE(8);
      const data = await stream.take(head.readUInt32BE(12));
      this.asked.push(option);
      if (option === NBD_OPT_EXPORT_NAME) {
        if (data.toString() !== NAME) return false;
        const reply = Buffer.alloc((flags & 2) === 0 ? 134 : 10);
        reply.writeBigUInt64BE(BigInt(DISK_BYTES), 0);
        reply.writeUInt16BE(FLAGS, 8);
        socket.write(reply);
        return true;
      }
      assert.equal(flags & 1, 1, 'one option is all that newstyle has before it was fixed');
      socket.write(encodeNbdOptionReply(option, NBD_REP_ERR_UNSUP));
    }
  }

  async #request(socket: Socket, stream: ByteStream): Promise<void> {
    const request = decodeNbdRequest(await stream.take(NBD_REQUEST_BYTES))!;
    const { type, handle, sizeBytes, flags } = request;
    const at = Number(request.at);
    if (type === NBD_CMD_DISC) return void socket.end();
    if (type === NBD_CMD_WRITE) (await stream.take(sizeBytes)).copy(this.bytes, at);
    if (type === NBD_CMD_FLUSH) this.flushes++;
    const isKnown = [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_FLUSH].includes(type) && flags === 0;
    socket.write(encodeNbdSimpleReply(isKnown ? 0 : NBD_EINVAL, handle));
    if (type === NBD_CMD_READ) socket.write(this.bytes.subarray(at, at + sizeBytes));
  }
}

for (const [name, kind] of Object.entries(KINDS)) {
  test(`${name}: read, written, flushed, and again after it hung up`, async (t) => {
    const server = new OldServer(t, kind);
    const uri = `nbd+unix:///${kind.flags === null ? '' : encodeURIComponent(NAME)}`;
    const disk = await openNbdLayer({ uri: `${uri}?socket=${server.path}` });
    t.after(() => disk.close());
    assert.deepEqual([disk.sizeBytes, disk.readOnly], [DISK_BYTES, false]);
    const model = Buffer.alloc(DISK_BYTES);
    for (let round = 1; round <= 2; round++) {
      const bytes = Buffer.alloc(65_536, round);
      bytes.copy(model, 512 * round);
      await disk.write(512 * round, bytes, round === 2); // FUA is a flush here
      await disk.zero(8192, 4096, { unmap: true, fua: false }); // there is no WRITE_ZEROES
      model.fill(0, 8192, 8192 + 4096);
      await disk.discard(0, 4096);
      await disk.flush();
      const back = Buffer.alloc(DISK_BYTES);
      await disk.read(0, back);
      assert.ok(back.equals(model) && server.bytes.equals(model));
      server.hangUp();
    }
    assert.ok(server.flushes >= 3, `${server.flushes} flushes`);
    assert.ok(disk.counters()['nbdReconnects']! >= 1);
    const extents = await disk.extents(0, DISK_BYTES);
    assert.deepEqual(extents, [{ at: 0, sizeBytes: DISK_BYTES, kind: 'data' }]);
    const askedFor = (option: number): boolean => server.asked.includes(option);
    assert.equal(askedFor(NBD_OPT_STRUCTURED_REPLY), ((kind.flags ?? 0) & 1) !== 0);
    assert.equal(askedFor(NBD_OPT_EXPORT_NAME), kind.flags !== null);
  });

  test(`${name}: another name and TLS are refused, with what to do`, async (t) => {
    const server = new OldServer(t, kind);
    const code = 'ERR_VRING_NBD_REFUSED';
    const other = `nbd+unix:///other?socket=${server.path}`;
    const message = kind.flags === null ? /knows no names, and "other"/ : /hung up .* "other"; a/;
    await assert.rejects(openNbdLayer({ uri: other }), { code, message });
    const secure = `nbds+unix:///?socket=${server.path}`;
    await assert.rejects(openNbdLayer({ uri: secure }), { code, message: /no TLS for nbds/ });
  });
}
