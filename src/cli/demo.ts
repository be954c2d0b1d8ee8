/**
 * `npm start`: shows the product on embedded defaults. Starts a switch with two ports, plugs two
 * software guests into them, each a process of its own, pings across, measures, prints one table.
 *
 *   npm start                run and end
 *   npm start -- --keep      leave the switch running afterwards, until Ctrl-C
 *   npm start -- --vm        two real Linux guests in QEMU instead, with a disk each
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { vringCommand, VringService } from '../vmm/index.ts';
import { complain, print, printJson, table } from './output.ts';

export type DemoRow = { readonly what: string; readonly value: string; readonly how: string };

const HELP = `Usage: npm start [-- options]

Starts a switch with two ports, plugs two guests in, and prints what happened.

Options:
  --vm          two Linux guests in QEMU instead of software guests, with a disk each
  --keep        leave the switch running afterwards, until Ctrl-C
  --seconds N   length of each throughput run (default 2)
  --json        print the table as JSON
  -h, --help    this text

Examples:
  npm start
  npm start -- --vm
  npm start -- --keep --seconds 5`;

const PINGS = 20;
const IDLE_SECONDS = 2;
const WINDOW = 192;
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;
const IPS = ['10.0.0.1', '10.0.0.2'] as const;

type Options = { vm: boolean; keep: boolean; json: boolean; seconds: number };

type PingResult = {
  received: number;
  milliseconds: { min: number; avg: number; max: number };
};
type TrafficResult = {
  seconds: number;
  received: { frames: number };
  records: { sent: number; good: number; corrupt: number };
};

async function main(): Promise<number> {
  const options = readOptions(process.argv.slice(2));
  if (typeof options === 'number') return options;
  const folder = mkdtempSync(join(tmpdir(), 'vring-demo-'));
  const sockets = [join(folder, 'vm0.sock'), join(folder, 'vm1.sock')] as const;
  const control = join(folder, 'switch.sock');
  try {
    const ports = sockets.map((path, i) => ['--port', `vm${i}=vhost-user:${path}`]).flat();
    const service = new VringService('the switch', [
      'switch',
      '--json',
      '--control',
      control,
      ...ports,
    ]);
    await service.ready();
    try {
      const rows = options.vm
        ? await (await import('./demo-vm.ts')).runVirtualMachines(sockets, folder)
        : await runSoftwareGuests(service, sockets, options.seconds);
      await show(rows, options);
      showNext(sockets[0], control, options);
      if (options.keep) await keepRunning(service);
    } finally {
      await service.end();
    }
    return 0;
  } catch (error) {
    complain(messageOf(error));
    return 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function readOptions(argv: string[]): Options | number {
  try {
    const { values } = parseArgs({
      args: argv,
      options: {
        vm: { type: 'boolean', default: false },
        keep: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        seconds: { type: 'string', default: '2' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    const seconds = Number(values.seconds);
    if (values.help) {
      print(HELP);
      return 0;
    }
    if (!(seconds >= 0.5 && seconds <= 3600)) {
      throw new Error(`--seconds ${values.seconds}: a number from 0.5 to 3600 is expected`);
    }
    return { ...values, seconds };
  } catch (error) {
    complain(messageOf(error));
    complain('see npm start -- --help');
    return 2;
  }
}

async function runSoftwareGuests(
  service: VringService,
  sockets: readonly [string, string],
  seconds: number,
): Promise<DemoRow[]> {
  complain('two software guests, one process each, on ports vm0 and vm1 ...');
  const guest = (n: 0 | 1, ...words: string[]): string[] => {
    const addresses = ['--mac', MACS[n], '--ip', `${IPS[n]}/24`];
    return ['guest', 'net', '--socket', sockets[n], ...addresses, '--json', ...words];
  };
  const rows: DemoRow[] = [];
  const echo = new VringService('guest vm1', guest(1, 'echo'));
  await echo.ready();
  const ping = guest(0, 'ping', IPS[1], '-c', String(PINGS), '-i', '0.05');
  const { received, milliseconds } = await vringCommand<PingResult>(ping);
  const { min, avg, max } = milliseconds;
  const trip = `min ${us(min)}, mean ${us(avg)}, max ${us(max)}`;
  rows.push({
    what: `ping, ${received} of ${PINGS} answered`,
    value: trip,
    how: `${IPS[0]} to ${IPS[1]}`,
  });
  await echo.end();
  for (const size of [64, 1514]) {
    // vm1 returns what it gets, and vm0 keeps WINDOW frames under way: as fast as the two guests
    // and the switch go together, without frames that are lost because one of them must wait.
    const returning = new VringService('guest vm1', guest(1, 'pps', '--echo'));
    await returning.ready();
    const words = ['pps', '--loop', '--window', String(WINDOW), '--to', MACS[1]];
    words.push('--size', String(size), '--seconds', String(seconds));
    rows.push(throughputRow(size, await vringCommand<TrafficResult>(guest(0, ...words))));
    await returning.end();
  }
  const before = service.cpuSeconds();
  await new Promise((resolve) => setTimeout(resolve, IDLE_SECONDS * 1000));
  const idle = ((service.cpuSeconds() - before) / IDLE_SECONDS) * 100;
  rows.push({
    what: 'switch when idle',
    value: `${idle.toFixed(1)} % CPU`,
    how: `over ${IDLE_SECONDS} s`,
  });
  return rows;
}

function throughputRow(size: number, result: TrafficResult): DemoRow {
  const { records, received, seconds } = result;
  const perSecond = received.frames / seconds;
  const mpps = (perSecond / 1e6).toFixed(2);
  const gbits = ((perSecond * size * 8) / 1e9).toFixed(2);
  return {
    what: `${size}-byte frames, there and back`,
    value: `${mpps} Mpps, ${gbits} Gbit/s each way`,
    how: `${records.good} of ${records.sent} came back, ${records.corrupt} corrupt`,
  };
}

function us(ms: number): string {
  return `${(ms * 1000).toFixed(0)} us`;
}

async function show(rows: readonly DemoRow[], options: Options): Promise<void> {
  if (options.json) {
    printJson(rows);
    return;
  }
  const cells = rows.map(({ what, value, how }) => [what, value, how]);
  print('');
  print(await table([{ title: 'WHAT' }, { title: 'RESULT' }, { title: 'HOW' }], cells));
}

function showNext(socket: string, control: string, options: Options): void {
  if (options.json) return;
  const run = 'npm run -s vring --';
  print('');
  if (options.keep) {
    print('The switch goes on. A Linux VM in QEMU on its first port, and what the switch sees:');
    print(`  ${run} vm --socket ${socket} --run --demo-guest --ip 10.0.0.3/24`);
    print(`  ${run} stats --control ${control}`);
  } else {
    print(
      'A real VM attaches to a switch that goes on: npm start -- --keep, then in another terminal',
    );
    print(`  ${run} vm --socket PATH --run --demo-guest`);
  }
  print('The QEMU command line or libvirt XML alone:');
  print(`  ${run} vm --socket PATH [--libvirt]`);
}

async function keepRunning(service: VringService): Promise<void> {
  complain(`the switch runs as process ${service.pid}; Ctrl-C ends it`);
  await Promise.race([
    service.exit(),
    new Promise<void>((resolve) => {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
    }),
  ]);
}

// Not exitCode: guests that still run after a failure would keep us; exit ends them.
process.exit(await main());
