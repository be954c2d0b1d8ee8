/**
 * `npm run migrations`: a Linux guest moves to and fro between two QEMUs, and before it runs again
 * all of its memory is compared. A page that differs was written and not copied again.
 *
 *   npm run migrations                         20 times, between two ports of a switch of ours: it
 *                                              receives and sends TCP streams and writes memory
 *   npm run migrations -- --packed --busy 2    packed rings; two programs that only take time
 *   npm run migrations -- --card none          without a card, and so without us
 *   npm run migrations -- --card none --even   the same with memory of whole MiB: QEMU 7.2 under
 *                                              TCG loses pages by itself (docs/migration.md)
 *
 * One line per move. Fails when a page differs or when the guest complains; with --even it counts.
 */
import { equal, ok } from 'node:assert/strict';
import { readOptions, wholeNumber, wrongUsage } from './options.ts';
import { endChild, LinuxGuest, startChild } from '../src/vmm/index.ts';
import { Luggage, MovingGuest, type Place } from '../test/peers/qemu-migration.ts';
import { missingPeers } from '../test/peers/require-peer.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { SwitchProcess } from '../test/peers/switch.ts';

const USAGE = `npm run migrations -- [options]
  --times N      moves (20)
  --card WHICH   ours, none (ours)
  --packed       packed rings
  --even         memory of whole MiB, with which QEMU 7.2 under TCG loses pages by itself
  --busy N       so many programs beside it that only take time (0)`;

/** The copy takes seconds, so that the log is in use. */
const BYTES_PER_SECOND = 64 * 2 ** 20;
/** The last moves of a guest that writes faster than that are allowed all that they need. */
const PATIENCE_MS = 4000;

const { values } = readOptions(USAGE, {
  options: {
    times: { type: 'string', default: '20' },
    card: { type: 'string', default: 'ours' },
    packed: { type: 'boolean', default: false },
    even: { type: 'boolean', default: false },
    busy: { type: 'string', default: '0' },
  },
});
const times = wholeNumber(USAGE, '--times', values.times, 1);
const busy = wholeNumber(USAGE, '--busy', values.busy, 0);
const { card, packed, even } = values;
if (card !== 'ours' && card !== 'none') {
  wrongUsage(USAGE, `--card: "${card}" is not one of ours, none`);
}
const missing = missingPeers(['qemu-system-x86_64', 'linux kernel', 'busybox']);
if (missing !== null) {
  process.stderr.write(`${missing}\n`);
  process.exit(2);
}
// An exit ends what was started; a signal alone would leave QEMU behind.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const say = (text: string): void => void process.stdout.write(`${text}\n`);

await using scratch = new Scratch();
for (let i = 0; i < busy; i++) {
  const child = startChild(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' });
  scratch.own({ close: () => endChild(child) });
}
const places: Place[] = ['a', 'b'].map((name) => ({
  socket: card === 'ours' ? scratch.path(name) : null,
}));
const peer = card === 'ours' ? await startPeer() : null;
const moving = await MovingGuest.start(scratch, places[0]!, {
  ip: '10.0.0.1/24',
  packed: packed === true,
  queuePairs: 1,
  evenMemory: even === true,
});
await peer?.waitReady();
const luggage = await Luggage.pack(moving.guest, peer === null ? null : '10.0.0.2');
if (peer !== null) {
  await streamFor(peer, moving.guest, '10.0.0.1');
  await streamFor(moving.guest, peer, '10.0.0.2');
} else {
  // In place of the streams: as much that is written in small pieces.
  await moving.guest.check(
    '(while :; do dd if=/dev/urandom of=/tmp/small bs=4k count=64 2>/dev/null; ' +
      'cat /tmp/small > /tmp/other; usleep 100000; done) > /dev/null 2>&1 &',
  );
}

let movesWithLoss = 0;
let lost = 0;
for (let number = 1; number <= times; number++) {
  const since = performance.now();
  let isPatient = true;
  const move = await moving.move(places[number % 2]!, {
    bytesPerSecond: BYTES_PER_SECOND,
    downtimeLimitMs: number % 3 === 0 ? 1 : 50, // many short rounds, or few
    onCopying: async () => {
      if (!isPatient || performance.now() - since < PATIENCE_MS) return;
      isPatient = false;
      const limits = { 'downtime-limit': 2000, 'max-bandwidth': 2 ** 40 };
      await moving.guest.qmp('migrate-set-parameters', limits);
    },
  });
  const pages = move.lostPages!;
  if (pages.length > 0) movesWithLoss++;
  lost += pages.length;
  const where = pages.slice(0, 4).map((page) => `0x${page.toString(16)}`);
  say(
    `${String(number).padStart(4)}${String(move.totalMs).padStart(7)} ms` +
      `${String(move.dirtySyncs).padStart(5)} looks at dirty pages` +
      `${String(pages.length).padStart(6)} lost ${where.join(' ')}`,
  );
  await sleep(200 + Math.random() * 500);
}
say(`${times} moves, ${movesWithLoss} of them lost pages, ${lost} pages in all`);
if (even !== true) {
  equal(lost, 0, 'pages were written and not copied again');
  const pings = await luggage.unpack(moving.guest);
  if (peer !== null) say(`${pings.lost} of ${pings.sent} echo requests lost`);
  ok(pings.lost <= pings.sent / 4, 'too many echo requests were lost');
}

async function startPeer(): Promise<LinuxGuest> {
  const ports = ['a', 'b', 'peer'].map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  scratch.own(await SwitchProcess.start({ ports, control: scratch.path('control') }));
  const nic = {
    path: scratch.path('peer'),
    mode: 'client',
    queuePairs: 1,
    packed: false,
    mrgRxbuf: true,
    mac: '52:54:00:00:11:02',
    mtu: null,
  } as const;
  return scratch.own(LinuxGuest.launch({ name: 'peer', ip: '10.0.0.2/24', nics: [nic] }));
}

/** A TCP stream until the machines end, 256 KiB each 100 ms; nobody keeps it. */
async function streamFor(from: LinuxGuest, to: LinuxGuest, address: string): Promise<void> {
  await to.check('mkfifo /tmp/never; (nc -l -p 4000 0<>/tmp/never > /dev/null 2>&1) & sleep 0.3');
  await from.check(
    'dd if=/dev/urandom of=/tmp/piece bs=64k count=4 2>/dev/null; ' +
      '(while :; do cat /tmp/piece; usleep 100000; done) ' +
      `| nc ${address} 4000 > /dev/null 2>&1 &`,
  );
}
