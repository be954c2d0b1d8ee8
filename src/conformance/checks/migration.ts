/** Dirty log, postcopy and device state: what migration asks of a back-end. */
import { GuestMemory } from '../../memory/index.ts';
import { arena, type Fd, socketPair } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { featureSet } from '../../wire/virtio.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { type CheckContext, memoryTable, type Session } from '../context.ts';
import { type BackendPeer, u64 } from '../peer.ts';
import { closeAll, RawSocket } from '../raw-socket.ts';

const LOG = wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD;
const LOG_ALL = featureSet(wire.VHOST_F_LOG_ALL);
const STATE = wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE;
const PAGEFAULT = wire.VHOST_USER_PROTOCOL_F_PAGEFAULT;
const LOGGING = { protocol: [LOG], virtio: [wire.VHOST_F_LOG_ALL], traffic: true } as const;
const PAGE = 4096;

/** The log of dirty pages: bit n is guest page n. */
class DirtyLog {
  readonly memory: GuestMemory;
  readonly sizeBytes: number;

  constructor(lastGpa: number) {
    this.sizeBytes = Math.ceil(lastGpa / PAGE / 8 / PAGE + 1) * PAGE;
    this.memory = GuestMemory.create(this.sizeBytes);
  }

  has(gpa: number): boolean {
    const page = Math.floor(gpa / PAGE);
    const byte = arena().bytes[this.memory.offset + Math.floor(page / 8)] as number;
    return ((byte >> (page % 8)) & 1) === 1;
  }

  clear(): void {
    arena().bytes.fill(0, this.memory.offset, this.memory.offset + this.sizeBytes);
  }

  /** Pages that are marked. */
  pages(): number[] {
    const found: number[] = [];
    const bytes = arena().bytes.subarray(this.memory.offset, this.memory.offset + this.sizeBytes);
    for (let i = 0; i < bytes.length; i++) {
      for (let bit = 0; bytes[i] !== 0 && bit < 8; bit++) {
        if (((bytes[i] as number) >> bit) & 1) found.push(8 * i + bit);
      }
    }
    return found;
  }

  close(): void {
    this.memory.close();
  }
}

type Logged = Session & { readonly log: DirtyLog };

/** Starts the device, then logging, in QEMU's order. `logGpa`: where used writes are logged. */
async function startLogged(t: CheckContext, used: boolean, logGpa?: number): Promise<Logged> {
  const session = await t.start({ protocol: [LOG] });
  await t.work(session);
  const { peer, rig } = session;
  const log = t.own(new DirtyLog(Math.max(rig.endGpa, (logGpa ?? 0) + PAGE)));
  const sizeBytes = BigInt(log.sizeBytes);
  const payload = wire.LogDescription.encode({ sizeBytes, fdOffset: 0n });
  await peer.ask(REQUEST.SET_LOG_BASE, payload, { fds: [log.memory.fd] });
  await peer.tell(REQUEST.SET_FEATURES, u64(peer.acked | LOG_ALL));
  for (const ring of rig.rings) {
    const addr = ring.addr(used, logGpa === undefined ? undefined : logGpa + ring.index * 0x10000);
    await peer.tell(REQUEST.SET_VRING_ADDR, wire.VringAddr.encode(addr));
  }
  await peer.barrier('logging was switched on');
  return { ...session, log };
}

/** One request; returns the pages that the device wrote data to. */
async function dataPages(t: CheckContext, session: Session): Promise<number[]> {
  const request = t.post(session);
  t.kick(session.ring);
  await t.completed(session, 1);
  await t.sleep(20);
  return request.writable.map(({ gpa }) => gpa);
}

/** The device's own end of a transfer, read to its end. */
async function drain(socket: Fd, timeoutMs: number): Promise<Uint8Array | null> {
  const chunks: Uint8Array[] = [];
  const deadline = performance.now() + timeoutMs;
  const { receiveWithFds } = await import('../../sys/index.ts');
  for (;;) {
    const into = new Uint8Array(65536);
    const got = receiveWithFds(socket.number, into, 0);
    if (got !== null && got.bytes === 0) return Buffer.concat(chunks);
    if (got !== null) chunks.push(into.slice(0, got.bytes));
    else if (performance.now() > deadline) return null;
    else await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** SET_DEVICE_STATE_FD; returns our end, or the fd that the back-end prefers. */
async function transfer(t: CheckContext, peer: BackendPeer, direction: number): Promise<Fd> {
  const [ours, theirs] = socketPair();
  t.own(ours);
  const payload = wire.DeviceStateTransfer.encode({ direction, phase: 0 });
  await peer.send(REQUEST.SET_DEVICE_STATE_FD, payload, { fds: [theirs] });
  theirs.close();
  const reply = await peer.reply(REQUEST.SET_DEVICE_STATE_FD);
  const value = new DataView(reply.payload.buffer, reply.payload.byteOffset).getBigUint64(0, true);
  if ((value & 0xffn) !== 0n) {
    closeAll(reply.fds);
    t.fail(`SET_DEVICE_STATE_FD was refused with ${value}`);
  }
  const [fd] = reply.fds;
  if (fd === undefined) return ours;
  return t.own(fd);
}

async function save(t: CheckContext, peer: BackendPeer): Promise<Uint8Array> {
  const state = await drain(await transfer(t, peer, 0), t.patience.answerMs);
  if (state === null) return t.fail('the back-end never ended its state (end of file)');
  t.saw(`${state.length} bytes of state`);
  const result = await peer.askU64(REQUEST.CHECK_DEVICE_STATE);
  if (result !== 0n) t.fail(`CHECK_DEVICE_STATE says ${result} after saving`);
  return state;
}

async function load(t: CheckContext, peer: BackendPeer, state: Uint8Array): Promise<bigint> {
  const fd = await transfer(t, peer, 1);
  const raw = t.own(new RawSocket(fd));
  if (state.length > 0) await raw.send(state);
  raw.close();
  return peer.askU64(REQUEST.CHECK_DEVICE_STATE);
}

export const migrationChecks: readonly Check[] = [
  check(
    'BE-LOG-001',
    'Written buffers are marked in the log',
    'With LOG_ALL acked every page that the device writes is marked, for address / 4096, before ' +
      'the request is seen to be completed.',
    'Migration',
    { needs: { ...LOGGING, devices: ['blk', 'scsi', 'fs'] } },
    async (t) => {
      const session = await startLogged(t, true);
      for (const gpa of await dataPages(t, session)) {
        if (!session.log.has(gpa)) t.fail(`the page of 0x${gpa.toString(16)} was not marked`);
      }
    },
  ),
  check(
    'BE-LOG-002',
    'The used ring is marked where log_guest_addr says',
    'With VHOST_VRING_F_LOG writes to the used ring are marked at log_guest_addr.',
    'Migration',
    { needs: LOGGING },
    async (t) => {
      const session = await startLogged(t, true);
      await dataPages(t, session);
      const gpa = Number(session.ring.addr().logGpa);
      if (!session.log.has(gpa)) t.fail(`the used ring's page 0x${gpa.toString(16)} is not marked`);
    },
  ),
  check(
    'BE-LOG-003',
    'log_guest_addr may lie outside guest memory',
    'The address under which the used ring is logged need not be in the memory table, only in ' +
      'the log.',
    'Migration',
    { needs: LOGGING },
    async (t) => {
      const logGpa = 0x1_5000_0000;
      const session = await startLogged(t, true, logGpa);
      await dataPages(t, session);
      const gpa = logGpa + session.ring.index * 0x10000;
      if (!session.log.has(gpa)) t.fail(`page 0x${gpa.toString(16)} was not marked`);
    },
  ),
  check(
    'BE-LOG-004',
    'Without VHOST_VRING_F_LOG the used ring is not marked',
    'Writes to the used ring are logged only if the flag of its addresses asks for it.',
    'Migration',
    { severity: 'should', needs: LOGGING },
    async (t) => {
      const session = await startLogged(t, false);
      await dataPages(t, session);
      const gpa = Number(session.ring.addr().logGpa);
      if (session.log.has(gpa)) t.fail('the used ring was marked');
    },
  ),
  check(
    'BE-LOG-005',
    'Only what was written is marked',
    'Pages that the device did not write stay unmarked: a back-end that marks everything makes ' +
      'migration endless.',
    'Migration',
    { severity: 'should', needs: LOGGING },
    async (t) => {
      const session = await startLogged(t, true);
      const data = await dataPages(t, session);
      const due = new Set(data.map((gpa) => Math.floor(gpa / PAGE)));
      for (const ring of session.rig.rings) {
        const used = Math.floor(Number(ring.addr().logGpa) / PAGE);
        due.add(used).add(used + 1);
      }
      const surplus = session.log.pages().filter((page) => !due.has(page));
      if (surplus.length > 0) t.fail(`${surplus.length} pages were marked that nobody wrote`);
    },
  ),
  check(
    'BE-LOG-006',
    'Logging stops when LOG_ALL is cleared',
    'After SET_FEATURES without LOG_ALL nothing is marked any more, and rings go on.',
    'Migration',
    { needs: LOGGING },
    async (t) => {
      const session = await startLogged(t, true);
      await dataPages(t, session);
      const { peer, rig, log } = session;
      for (const ring of rig.rings) {
        await peer.tell(REQUEST.SET_VRING_ADDR, wire.VringAddr.encode(ring.addr(false)));
      }
      await peer.tell(REQUEST.SET_FEATURES, u64(peer.acked));
      await peer.barrier('logging was switched off');
      log.clear();
      await dataPages(t, session);
      const { length } = log.pages();
      if (length > 0) t.fail(`${length} pages were marked after LOG_ALL was cleared`);
    },
  ),
  check(
    'BE-LOG-007',
    'LOG_ALL and LOG_SHMFD are offered together',
    'Logging needs the feature and the shared log: one without the other is useless.',
    'Migration',
    { severity: 'may' },
    async (t) => {
      const peer = await t.connect();
      const log = ((await peer.askProtocolFeatures()) & featureSet(LOG)) !== 0n;
      const all = (peer.offered & LOG_ALL) !== 0n;
      if (log !== all)
        t.fail(`LOG_ALL ${all ? 'is' : 'is not'}, LOG_SHMFD ${log ? 'is' : 'is not'}`);
    },
  ),
  check(
    'BE-POSTCOPY-001',
    'Postcopy: the memory table is answered with where it was mapped',
    'After POSTCOPY_LISTEN the reply to SET_MEM_TABLE has the table with user addresses of the ' +
      'back-end; the front-end acks it by a SET_MEM_TABLE of one zero; POSTCOPY_END says 0.',
    'Front-end message types, SET_MEM_TABLE and POSTCOPY_*',
    { needs: { protocol: [PAGEFAULT] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [PAGEFAULT] });
      await peer.send(REQUEST.POSTCOPY_ADVISE);
      const advice = await peer.reply(REQUEST.POSTCOPY_ADVISE);
      closeAll(advice.fds);
      if (advice.fds.length !== 1) t.fail(`${advice.fds.length} fds, expected the userfault fd`);
      await peer.tell(REQUEST.POSTCOPY_LISTEN);
      const rig = t.guest();
      const table = rig.regions(1);
      const answer = await peer.ask(REQUEST.SET_MEM_TABLE, memoryTable(table), {
        fds: [rig.memory.fd],
      });
      if (answer.length < 40) t.fail(`a reply of ${answer.length} bytes, expected the table`);
      const region = wire.MemoryRegion.decode(answer, wire.MemoryTableHeader.size);
      if (region.userAddr === 0n) t.fail('the mapped base is 0');
      await peer.send(REQUEST.SET_MEM_TABLE, u64(0));
      const end = await peer.askU64(REQUEST.POSTCOPY_END);
      if (end !== 0n) t.fail(`POSTCOPY_END says ${end}`);
      await peer.barrier('after POSTCOPY_END');
    },
  ),
  check(
    'BE-STATE-001',
    'Device state can be saved',
    'With all rings stopped the back-end writes its state to the fd, ends it, and ' +
      'CHECK_DEVICE_STATE says 0.',
    'Migrating back-end state',
    { needs: { protocol: [STATE] } },
    async (t) => {
      await save(t, await t.negotiated({ protocol: [STATE] }));
    },
  ),
  check(
    'BE-STATE-002',
    'Saved device state can be loaded',
    'State that the back-end saved is what it takes.',
    'Migrating back-end state',
    { needs: { protocol: [STATE] } },
    async (t) => {
      const state = await save(t, await t.negotiated({ protocol: [STATE] }));
      const peer = await t.negotiated({ protocol: [STATE] });
      const result = await load(t, peer, state);
      if (result !== 0n) t.fail(`CHECK_DEVICE_STATE says ${result} after loading`);
    },
  ),
  check(
    'BE-STATE-003',
    'Nonsense is not taken for device state',
    'CHECK_DEVICE_STATE tells that what came is no state.',
    'Migrating back-end state',
    { severity: 'should', level: 'full', needs: { protocol: [STATE] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [STATE] });
      const result = await load(t, peer, new Uint8Array(64).fill(0x5a));
      if (result === 0n) t.fail('CHECK_DEVICE_STATE says 0');
    },
  ),
  check(
    'BE-STATE-004',
    'Device state is not moved while rings run',
    'The only phase that there is: all rings stopped.',
    'Migrating back-end state',
    { severity: 'should', level: 'full', needs: { protocol: [STATE], traffic: true } },
    async (t) => {
      const session = await t.start({ protocol: [STATE] });
      await t.work(session);
      const [ours, theirs] = socketPair();
      t.own(ours);
      t.own(theirs);
      const { peer } = session;
      const payload = wire.DeviceStateTransfer.encode({ direction: 0, phase: 0 });
      await peer.send(REQUEST.SET_DEVICE_STATE_FD, payload, { fds: [theirs] });
      const got = await peer.receive();
      if (typeof got === 'string') return;
      closeAll(got.fds);
      if (got.payload[0] === 0) t.fail('SET_DEVICE_STATE_FD was accepted');
    },
  ),
];
