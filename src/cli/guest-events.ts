/** What happens to a guest of `vring guest net` while a command runs: restarts and migrations. */
import { resolve } from 'node:path';
import { ConfigError, messageOf } from '../base/errors.ts';
import { type LinkEvent, migrateGuest, NetConnector, type NetGuest } from '../guest/index.ts';
import type { GuestOptions } from './guest-actions.ts';
import { printJson } from './output.ts';

/** @throws ConfigError when `--migrate-to` leads nowhere else. */
export function checkMigrateTo({ socket, migrateTo }: GuestOptions): void {
  if (migrateTo === undefined || resolve(socket) !== resolve(migrateTo)) return;
  const text = 'is --socket, too; give that of another back-end';
  throw new ConfigError('--migrate-to', `${migrateTo} ${text}`);
}

/** SIGUSR1 moves the guest to `--migrate-to`, the next one back. Returns what ends that. */
export function moveOnSignal(options: GuestOptions, guest: NetGuest): () => void {
  if (options.migrateTo === undefined) return () => undefined;
  let [here, there] = [options.socket, options.migrateTo];
  const onSignal = (): void => {
    if (guest.moving) return;
    const { mtu = null } = options;
    const connector = new NetConnector({ socket: there, server: options.server, mtu });
    const connect = (signal?: AbortSignal) => connector.connect(signal, true);
    migrateGuest(guest, { connect }).then(
      (report) => {
        const { pauseMs, rounds, stateBytes } = report;
        happened(
          options,
          { event: 'moved', to: there, ...report },
          `moved to ${there} in ${report.totalMs.toFixed(0)} ms, of which it stood ` +
            `still for ${pauseMs.toFixed(0)}; ${rounds.join(' + ')} pages, ` +
            `${stateBytes ?? 'no'} bytes of device state`,
        );
        [here, there] = [there, here];
      },
      (error: unknown) => {
        const message = messageOf(error);
        happened(options, { event: 'stays', reason: message }, `it stays: ${message}`);
      },
    );
  };
  process.on('SIGUSR1', onSignal);
  return () => process.off('SIGUSR1', onSignal);
}

/** A switch that came back has learned nothing: it is told again where we are. */
export function onRestored(guest: NetGuest, announce: () => void): void {
  const tell = guest.onLink;
  guest.onLink = (event) => {
    tell?.(event);
    if (event.kind === 'restored') announce();
  };
}

/** The back-end went, or the next one is there. */
export function tellLink(options: GuestOptions, event: LinkEvent): void {
  if (event.kind === 'lost') {
    const reason = event.reason?.message ?? null;
    const text = `the back-end is gone, waiting for the next one at ${options.socket}`;
    happened(options, { event: 'lost', reason }, text);
  } else {
    const { milliseconds } = event;
    const text = `the back-end is back after ${milliseconds.toFixed(0)} ms`;
    happened(options, { event: 'restored', milliseconds }, text);
  }
}

/** What happens while a command runs: a message, and with --json a line for scripts. */
function happened(options: GuestOptions, value: object, text: string): void {
  process.stderr.write(`vring guest: ${text}\n`);
  if (options.json) printJson(value, 'line');
}
