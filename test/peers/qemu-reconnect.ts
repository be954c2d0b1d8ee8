/**
 * Two Linux guests talk through a switch that is killed and started again, many times: one guest's
 * QEMU connects to its port (`reconnect=1`), the other's listens and our port connects.
 */
import { equal } from 'node:assert/strict';
import { LinuxGuest, type GuestNic } from '../../src/vmm/index.ts';
import { Scratch, sleep, waitFor } from './scratch.ts';
import { SwitchProcess } from './switch.ts';
import { LongStream } from './traffic.ts';

export type ReconnectPlan = {
  readonly times: number;
  /** Ring form and queue pairs of each guest: where QEMU connects, where QEMU listens. */
  readonly rings: readonly [GuestRings, GuestRings];
  readonly onRestart?: (restart: Restart) => void;
};

export type GuestRings = { readonly packed: boolean; readonly queuePairs: number };

/** Milliseconds after the kill. */
export type Restart = {
  readonly number: number;
  /** The new switch answers. */
  readonly switchMs: number;
  /** Rings run: QEMU that tries again each second, and QEMU that listens. */
  readonly upMs: readonly [number, number];
  /** Frames of both guests pass, and the TCP stream moves. */
  readonly trafficMs: number;
};

export type ReconnectResult = {
  readonly restarts: readonly Restart[];
  /** Echo requests that were sent 20 ms apart and never answered, the longest row of them. */
  readonly longestSilenceMs: number;
  readonly streamBytes: number;
};

const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;
const PING_MS = 20;
/** QEMU tries again after 1 s, TCP by then only every 0.8 or 1.6 s, on a shared machine. */
const PATIENCE_MS = 30_000;
/** More than echo requests and ARP bring together meanwhile: the stream goes on. */
const STREAM_BYTES = 128 * 1024;

export async function restartUnderTraffic(plan: ReconnectPlan): Promise<ReconnectResult> {
  await using scratch = new Scratch();
  const paths = [scratch.path('p0'), scratch.path('p1')] as const;
  const guests = plan.rings.map((rings, i) =>
    scratch.own(
      LinuxGuest.launch({
        name: `guest${i}`,
        ip: `${ADDRESSES[i]}/24`,
        nics: [nic(i, paths[i]!, rings)],
      }),
    ),
  );
  const [a, b] = guests as [LinuxGuest, LinuxGuest];
  const ports = plan.rings.map(
    ({ queuePairs }, i) =>
      `p${i}=vhost-user:${paths[i]},queues=${queuePairs}${i === 1 ? ',client' : ''}`,
  );
  const control = scratch.path('control');
  let vswitch = await SwitchProcess.start({ ports, control });
  scratch.own({ close: () => vswitch.close() });
  await Promise.all(guests.map((guest) => guest.waitReady()));
  for (const [i, { packed }] of plan.rings.entries()) {
    const port = await vswitch.waitState(`p${i}`, 'up');
    equal(port.features?.names.includes('RING_PACKED'), packed);
  }
  const stream = await LongStream.start(a, b, ADDRESSES[1]);
  const ping = `ping -i ${PING_MS / 1000} ${ADDRESSES[1]}`;
  await a.check(`${ping} > /tmp/ping.log 2>&1 & echo $! > /tmp/ping.pid`);
  await flowing(vswitch);

  const restarts: Restart[] = [];
  for (let number = 1; number <= plan.times; number++) {
    const start = performance.now();
    const elapsed = (): number => Math.round(performance.now() - start);
    process.kill(vswitch.pid, 'SIGKILL');
    await vswitch.ended();
    vswitch = await SwitchProcess.start({ ports, control });
    const switchMs = elapsed();
    const upMs = await Promise.all(
      plan.rings.map(async (_, i) => {
        await vswitch.waitState(`p${i}`, 'up', PATIENCE_MS);
        return elapsed();
      }),
    );
    await flowing(vswitch);
    const restart: Restart = {
      number,
      switchMs,
      upMs: upMs as [number, number],
      trafficMs: elapsed(),
    };
    restarts.push(restart);
    plan.onRestart?.(restart);
  }
  const longestSilenceMs = await longestSilence(a);
  return { restarts, longestSilenceMs, streamBytes: await stream.end(a, b) };
}

function nic(index: number, path: string, { packed, queuePairs }: GuestRings): GuestNic {
  return {
    path,
    mode: index === 0 ? 'client' : 'server',
    queuePairs,
    packed,
    mrgRxbuf: true,
    mac: `52:54:00:00:0e:0${index}`,
    mtu: null,
  };
}

/** Frames of both guests come through this switch, and data of the stream. */
async function flowing(vswitch: SwitchProcess): Promise<void> {
  try {
    await waitFor('traffic', PATIENCE_MS, async () => {
      const [p0, p1] = await vswitch.ports();
      return (p0?.counters['rxBytes'] ?? 0) > STREAM_BYTES && (p1?.counters['rxFrames'] ?? 0) > 8;
    });
  } catch (cause) {
    const ports = JSON.stringify(await vswitch.ports(), null, 1);
    throw new Error(`no traffic: ${ports}\n${vswitch.log}`, { cause });
  }
}

/**
 * Answers of the other guest say which requests they are for; what is missing between was lost.
 * Returns the longest row of them, in milliseconds.
 */
async function longestSilence(a: LinuxGuest): Promise<number> {
  await a.check('kill -INT $(cat /tmp/ping.pid)');
  await sleep(200);
  const script =
    '/seq=/ {split($2, f, " "); if (f[1] - last > most) most = f[1] - last; last = f[1]} ' +
    'END {print most + 0}';
  return PING_MS * Number(await a.check(`awk -F 'seq=' '${script}' /tmp/ping.log`));
}
