/**
 * `npm run kill-target`: what serves a disk is killed with SIGKILL at random moments, under load
 * that knows every byte, and started again by a small supervisor.
 *
 *   npm run kill-target                           50 times each: our own guest on split rings, on
 *                                                 packed rings, and a guest of QEMU with ext4 twice
 *   npm run kill-target -- --times 200 --guest qemu
 *   npm run kill-target -- --guest qemu-daemon    the disk is the daemon's, not `vring serve blk`'s
 *   npm run kill-target -- --guest split --seed 7
 *
 * One line per kill: until the guest was back after the one before, or `-` where the process was
 * killed before that. Fails when a byte differs, when a request is lost, or when the guest saw an
 * error; our own guest also sees whether a request was carried out twice.
 */
import { readOptions, wholeNumber, wrongUsage } from './options.ts';
import { missingPeers } from '../test/peers/require-peer.ts';
import {
  type Kill,
  KILL_PEERS,
  killUnderOurGuest,
  killUnderQemu,
} from '../test/peers/target-kills.ts';

const GUESTS = ['split', 'packed', 'qemu', 'qemu-daemon'] as const;

const USAGE = `npm run kill-target -- [options]
  --times N      kills for each guest (50)
  --guest WHICH  split, packed, qemu, qemu-daemon or all (all)
  --seed N       of the moments and of the data (random)`;

const { values } = readOptions(USAGE, {
  options: {
    times: { type: 'string', default: '50' },
    guest: { type: 'string', default: 'all' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 1e6)) },
  },
});
const times = wholeNumber(USAGE, '--times', values.times, 1);
const seed = wholeNumber(USAGE, '--seed', values.seed, 0);
const chosen = GUESTS.filter((guest) => values.guest === guest || values.guest === 'all');
if (chosen.length === 0) {
  wrongUsage(USAGE, `--guest: "${values.guest}" is not one of ${GUESTS.join(', ')}, all`);
}
const missing = chosen.some((guest) => guest.startsWith('qemu')) ? missingPeers(KILL_PEERS) : null;
if (missing !== null) {
  process.stderr.write(`${missing}\n`);
  process.exit(2);
}
// An exit ends what was started; a signal alone would leave QEMU behind.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const say = (text: string): void => void process.stdout.write(`${text}\n`);
say(`seed ${seed}`);
for (const guest of chosen) {
  const backs: number[] = [];
  let early = 0;
  const onKill = ({ number, backMs }: Kill): void => {
    if (backMs === null) early++;
    else if (number > 1) backs.push(backMs);
    say(`${guest.padEnd(12)}${String(number).padStart(6)}${String(backMs ?? '-').padStart(8)} ms`);
  };
  const plan = { times, random: randomFrom(seed), onKill };
  const result =
    guest === 'qemu' || guest === 'qemu-daemon'
      ? await killUnderQemu(plan, seed, guest === 'qemu' ? 'serve' : 'daemon')
      : ourResult(await killUnderOurGuest(plan, seed, guest === 'packed'));
  backs.sort((a, b) => a - b);
  const median = backs[Math.floor(backs.length / 2)];
  say(
    `${guest}: killed ${times} times, ${early} of them before the guest was back from the one ` +
      `before; back after ${median} ms in the middle, ${backs.at(-1)} ms at most\n${result}`,
  );
}

function ourResult(report: Awaited<ReturnType<typeof killUnderOurGuest>>): string {
  const requests = Object.values(report.ops).reduce((sum, op) => sum + op.requests, 0);
  return (
    `${requests} requests, ${report.errors} errors, ${report.repeated} given again; ` +
    `${report.verify!.checked} blocks were compared: nothing differs`
  );
}

/** Numerical Recipes' generator; 0 to below 1. */
function randomFrom(start: number): () => number {
  let state = start >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
