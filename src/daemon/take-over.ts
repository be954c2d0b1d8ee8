/**
 * A new process takes over from a running switch: the other half of hand-over.ts.
 *
 * It listens on a socket of its own in a directory that only its user can enter, asks the running
 * switch over its control socket to connect there, builds what it is told, and serves from the
 * moment of the commit. What fails before leaves the running switch as it was.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { messageOf, SysError, VringError } from '../base/errors.ts';
import { acceptUnix, type Fd, listenUnix, peerCredentials, pollFd } from '../sys/index.ts';
import { expect, sayFailed } from './hand-over.ts';
import { ERR_HAND_OVER, HAND_OVER_FORMAT, HandOverChannel } from './hand-over-channel.ts';
import { mergeConfig, type MergedConfig } from './hand-over-config.ts';
import {
  HandOverPlanSchema,
  type HandOverRequest,
  HandOverStateSchema,
  monotonicMs,
  parseBody,
} from './hand-over-format.ts';
import { SwitchDaemon } from './switch-daemon.ts';
import type { SwitchConfig } from './switch-types.ts';
import { VERSION } from './version.ts';
import { VirtualSwitch } from './virtual-switch.ts';

/** The running switch connects at once, or has refused before. */
const CONNECT_TIMEOUT_MS = 5_000;
/** It may have to wait for a change of its ports. */
const PLAN_TIMEOUT_MS = 30_000;
/** Standing still, with many rings, takes milliseconds; closing a disk's image may take longer. */
const SWITCH_TIMEOUT_MS = 30_000;
/** The predecessor's TCP listener closes within 200 ms. */
const HTTP_RETRY_MS = 50;
const HTTP_TRIES = 40;

export type TakeOverOptions = {
  /** Sends the request to the running switch; throws what it refuses. */
  readonly ask: (request: HandOverRequest) => Promise<void>;
  /** A newer configuration; null: that of the running switch. */
  readonly config: SwitchConfig | null;
};

export type TakenOver = {
  readonly daemon: SwitchDaemon;
  /** From when the predecessor stood still to when the rings ran here. */
  readonly pauseMs: number;
  readonly predecessor: { readonly pid: number; readonly version: string };
};

/** @throws VringError, ConfigError: the running switch goes on as before. */
export async function takeOver(options: TakeOverOptions): Promise<TakenOver> {
  const channel = await meet(options.ask);
  let made: VirtualSwitch | null = null;
  let listener: Fd | null = null;
  try {
    const prepared = await expect(channel, 'prepare', PLAN_TIMEOUT_MS);
    try {
      const plan = parseBody(HandOverPlanSchema, 'prepare', prepared.body);
      const { config, taken, added } = mergeConfig(plan, options.config);
      listener = prepared.fds.take(plan.control, 'the control socket');
      made = await VirtualSwitch.adopt(config, taken, plan.events, prepared.fds);
      await made.rehearse();
      await channel.send('ready', null);

      const { body, blob, fds } = await expect(channel, 'switch', SWITCH_TIMEOUT_MS);
      const state = parseBody(HandOverStateSchema, 'switch', body);
      try {
        await made.restore(state, blob, fds);
      } finally {
        fds.close();
      }
      await channel.send('restored', null);
      await expect(channel, 'commit', SWITCH_TIMEOUT_MS);

      await made.resume();
      const pauseMs = monotonicMs() - state.stoppedAtMs;
      await channel.send('running', { pauseMs }).catch(() => undefined);
      const from = `process ${plan.pid}, vring ${plan.version}`;
      made.report('taken-over', `from ${from}; the guests waited ${pauseMs.toFixed(1)} ms`);
      const daemon = await serve(config, made, listener);
      for (const port of added.ports) await addPort(made, port);
      await addStorage(made, added, (kind, text) => made!.report(kind, text));
      return { daemon, pauseMs, predecessor: { pid: plan.pid, version: plan.version } };
    } finally {
      prepared.fds.close();
    }
  } catch (thrown) {
    await sayFailed(channel, thrown);
    await made?.surrender();
    throw thrown;
  } finally {
    listener?.close();
    channel.close();
  }
}

/** Has the running switch connect to us. */
async function meet(ask: TakeOverOptions['ask']): Promise<HandOverChannel> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-take-over-'));
  const path = join(folder, 'socket');
  const listener = listenUnix(path, { mode: 0o600 });
  try {
    await ask({ socket: path, format: HAND_OVER_FORMAT, version: VERSION });
    const socket = await accept(listener);
    const { uid, pid } = peerCredentials(socket.number);
    if (uid === process.geteuid!()) return new HandOverChannel(socket);
    socket.close();
    throw new VringError(ERR_HAND_OVER, `process ${pid} of user ${uid} is not the switch asked`);
  } finally {
    listener.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

function accept(listener: Fd): Promise<Fd> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      clearTimeout(timer);
      poll.close();
    };
    const timer = setTimeout(() => {
      done();
      reject(new VringError(ERR_HAND_OVER, 'the running switch did not connect in time'));
    }, CONNECT_TIMEOUT_MS);
    const poll = pollFd(listener.number, { read: true }, () => {
      try {
        const socket = acceptUnix(listener.number);
        if (socket === null) return;
        done();
        resolve(socket);
      } catch (error) {
        done();
        reject(error as Error);
      }
    });
  });
}

/** The predecessor still closes its TCP listener; without ours the switch serves on. */
async function serve(config: SwitchConfig, made: VirtualSwitch, listener: Fd) {
  for (let tries = 1; ; tries++) {
    try {
      return await SwitchDaemon.adopt(config, made, listener.dup());
    } catch (thrown) {
      const busy = thrown instanceof SysError && thrown.errnoName === 'EADDRINUSE';
      if (busy && tries < HTTP_TRIES) {
        await new Promise((resolve) => setTimeout(resolve, HTTP_RETRY_MS));
        continue;
      }
      made.report('http-failed', `${messageOf(thrown)}; the control socket serves on`);
      return await SwitchDaemon.adopt({ ...config, http: null }, made, listener.dup());
    }
  }
}

/** The guests are here by now: a port of the newer file that cannot be opened ends nothing. */
async function addPort(made: VirtualSwitch, port: SwitchConfig['ports'][number]): Promise<void> {
  try {
    await made.addPort(port);
  } catch (thrown) {
    made.report('port-failed', `port ${port.name} was not added: ${messageOf(thrown)}`);
  }
}

async function addStorage(
  { disks }: VirtualSwitch,
  added: Pick<MergedConfig['added'], 'disks' | 'adapters' | 'units'>,
  report: (kind: string, message: string) => void,
): Promise<void> {
  const trying = async (what: string, work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (thrown) {
      report('disk-failed', `${what} was not added: ${messageOf(thrown)}`);
    }
  };
  for (const disk of added.disks) {
    await trying(`disk ${disk.name}`, () => disks.addConfigured(disk));
  }
  for (const adapter of added.adapters) {
    await trying(`SCSI adapter ${adapter.name}`, () => disks.addConfiguredAdapter(adapter));
  }
  for (const { adapter, units } of added.units) {
    await trying(`a unit of ${adapter}`, () => disks.attachConfigured(adapter, units));
  }
}
