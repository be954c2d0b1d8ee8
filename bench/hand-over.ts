/**
 * `npm run bench:hand-over`: how long guests wait while a switch is handed to a new process. From
 * the moment when the old process's data plane stands still to the moment when the new one's
 * rings run, as the new process says; both read CLOCK_MONOTONIC. Frames flow between two ports
 * meanwhile, and none may be lost.
 *
 *   npm run bench:hand-over -- --count 20 --ports 16
 */
import { readOptions, wholeNumber } from '../scripts/options.ts';
import { runTraffic } from '../src/guest/index.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { Host, macOf, VringProcess } from '../test/peers/software-guest.ts';
import { startSwitch } from '../test/peers/switch.ts';
import { printMachine, writeResults } from './results.ts';
import { summarize } from './statistics.ts';

const USAGE = `npm run bench:hand-over -- [options]
  --count N   hand-overs (20)
  --ports N   ports with a guest (4)
  --rate N    frames per second between two of them (5000)
  --json FILE every pause (build/bench-hand-over.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    count: { type: 'string', default: '20' },
    ports: { type: 'string', default: '4' },
    rate: { type: 'string', default: '5000' },
    json: { type: 'string', default: 'build/bench-hand-over.json' },
  },
});

async function main(): Promise<void> {
  const count = wholeNumber(USAGE, '--count', options.count, 1);
  const ports = wholeNumber(USAGE, '--ports', options.ports, 2);
  const rate = wholeNumber(USAGE, '--rate', options.rate, 1);
  const machine = printMachine();
  await using scratch = new Scratch();
  const names = Array.from({ length: ports }, (_, i) => `p${i + 1}`);
  const vswitch = await startSwitch(scratch, Object.fromEntries(names.map((name) => [name, ''])));
  const hosts: Host[] = [];
  for (const [i, name] of names.entries()) {
    // The receiver has room for what a sender that this machine held up sends at once.
    const ringSize = i === 1 ? 8192 : 1024;
    const notify = i < 2 ? ({ ringSize, notify: 'manual' } as const) : {};
    const form = { packed: i % 2 === 0, ...notify };
    hosts.push(scratch.own(await Host.join(scratch.path(name), i + 1, form)));
  }
  const stop = new AbortController();
  hosts[1]!.guest.announce();
  const sink = runTraffic({ guest: hosts[1]!.guest, signal: stop.signal });
  const send = { sizeBytes: 200, targetMac: macOf(2), rate };
  const stopSender = new AbortController();
  const sender = runTraffic({ guest: hosts[0]!.guest, generate: send, signal: stopSender.signal });

  const pauses: number[] = [];
  for (let i = 0; i < count; i++) {
    const args = ['switch', '--take-over', '--control', vswitch.control];
    const next = scratch.own(new VringProcess(...args));
    await next.says(/ready: /);
    const pauseMs = Number(/pause ([\d.]+) ms/.exec(next.err)?.[1] ?? Number.NaN);
    pauses.push(pauseMs);
    process.stdout.write(`${pauseMs.toFixed(1)} `);
  }
  stopSender.abort();
  await sender;
  await sleep(300);
  stop.abort();
  const { records } = await sink;
  const { median, min, max } = summarize(pauses);
  const [low, middle, high] = [min, median, max].map((ms) => ms.toFixed(1));
  console.log(`\n${count} hand-overs of ${ports} ports, ${rate} frames/s`);
  console.log(`pause: median ${middle} ms, least ${low} ms, most ${high} ms`);
  console.log(
    `frames: ${records.good} received, ${records.lost} lost, ${records.repeated} doubled`,
  );
  const { good, lost, repeated } = records;
  const results = { ports, rate, pauses, frames: { good, lost, repeated } };
  writeResults(options.json, machine, results);
}

await main();
