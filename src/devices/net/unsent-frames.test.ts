/** Frames that the kernel does not take at once: the worker stays awake for them, for a while. */
import { equal } from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../../switch/index.ts';
import { arena } from '../../sys/index.ts';
import { XDP_RING_NEED_WAKEUP } from '../../wire/xdp.ts';
import { createPlane } from './net-plane.ts';

const RING_BYTES = 65536;
const CHUNK_BYTES = 2048;
const PARTS = { producerAt: 0, consumerAt: 64, flagsAt: 128, descAt: 192 };

/**
 * A descriptor that sends nothing now and says EAGAIN, as an XDP socket whose driver is busy: a
 * connection to a listener that has as many as it may. Until the event loop turns.
 */
async function busySocket(listener: AddressInfo, sockets: Socket[]): Promise<number> {
  for (let i = 0; i < 4; i++) sockets.push(connect(listener.port, '127.0.0.1'));
  await new Promise<void>((resolve) => process.nextTick(resolve));
  return (sockets.at(-1) as unknown as { _handle: { fd: number } })._handle.fd;
}

test('frames that an uplink could not send keep its worker awake', async () => {
  const server = createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 });
  await once(server, 'listening');
  const sockets: Socket[] = [];
  const memory = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES + 4 * RING_BYTES + 3072 * CHUNK_BYTES);
  const ringsAt = memory.offset + SWITCH_SCRATCH_BYTES;
  const umemAt = ringsAt + 4 * RING_BYTES;
  const place = (ring: number) => {
    return { offset: ringsAt + ring * RING_BYTES, sizeBytes: RING_BYTES, layout: PARTS };
  };
  const [rx, tx, fill, completion] = [place(0), place(1), place(2), place(3)];
  const plane = createPlane({
    watch: () => undefined,
    unwatch: () => undefined,
    emit: () => undefined,
    spinMs: 0,
    options: {
      macTable: MacTable.create().memory,
      counters: new SharedArrayBuffer(COUNTERS_BYTES),
      scratchAt: memory.offset,
    },
  });
  const { view, bytes } = arena();
  const word = (at: number): number => view.getInt32(at, true);
  /** One more frame of 60 bytes has arrived, in the first chunk. */
  const arrive = (): void => {
    const produced = word(rx.offset);
    bytes.set([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5], umemAt);
    view.setInt32(rx.offset + PARTS.descAt + produced * 16 + 8, 60, true);
    view.setInt32(rx.offset, produced + 1, true);
  };
  try {
    view.setInt32(tx.offset + PARTS.flagsAt, XDP_RING_NEED_WAKEUP, true);
    const fd = await busySocket(server.address() as AddressInfo, sockets);
    const queue = { fd, umemAt, chunkBytes: CHUNK_BYTES, rx, tx, fill, completion };
    plane.command('addUplinkPort', {
      port: 0,
      settings: { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: true },
      uplink: { kind: 'xdp', queues: [queue], mtu: 1500, linkUp: true },
    });
    const now = performance.now();
    plane.poll(now + 1000);
    equal(plane.awake, 0, 'nothing to do');

    arrive();
    plane.ready(0, now + 2000);
    equal(plane.poll(now + 2000), 1);
    equal(word(tx.offset), 1, 'it is in the ring');
    for (let round = 0; round < 10; round++) plane.poll(now + 3000);
    equal(plane.awake, 1, 'its source sleeps, and the frame waits');
    view.setInt32(tx.offset + PARTS.consumerAt, 1, true); // the kernel took it
    plane.poll(now + 4000);
    equal(plane.awake, 0);

    arrive();
    plane.ready(0, now + 5000);
    let rounds = 0;
    while (plane.awake > 0 && rounds < 1000) plane.poll(now + 6000 + rounds++);
    equal(rounds, 100, 'one that the kernel never takes does not keep it for ever');
  } finally {
    plane.close?.();
    for (const socket of sockets) socket.destroy();
    server.close();
    memory.close();
  }
});
