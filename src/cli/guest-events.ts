/** What happens to a guest of `vring guest net` while a command runs: restarts and migrations. */
import { resolve } from 'node:path';
import { ConfigError, messageOf } from '../base/errors.ts';
import {
  BACKEND_FORMS,
  backendText,
  type BackendSpec,
  type LinkEvent,
  migrateGuest,
  NetConnector,
  type NetGuest,
  parseBackendOrSocket,
  parseBackendSpec,
} from '../guest/index.ts';
import type { GuestOptions } from './guest-actions.ts';
import { printJson } from './output.ts';

/** @throws ConfigError: none, two, or none that could be understood. */
export function backendOf({ backend, socket, server }: GuestOptions): BackendSpec {
  if (backend !== undefined && socket !== undefined) {
    throw new ConfigError('--backend', 'and --socket are two back-ends; give one of both');
  }
  if (socket !== undefined) return { kind: 'vhost-user', socket, server };
  if (backend === undefined) {
    const forms = `--backend ${BACKEND_FORMS}`;
    throw new ConfigError('--backend', `is missing, and --socket, too; expected is ${forms}`);
  }
  const spec = parseBackendSpec(backend, '--backend');
  if (!server) return spec;
  if (spec.kind === 'vhost-user') return { ...spec, server };
  throw new ConfigError('--server', `is for vhost-user; ${spec.kind} has no socket to listen on`);
}

/** @throws ConfigError when `--migrate-to` leads nowhere else. */
export function checkMigrateTo(options: GuestOptions): void {
  const { migrateTo } = options;
  if (migrateTo === undefined) return;
  const here = placeOf(backendOf(options));
  if (here !== placeOf(parseBackendOrSocket(migrateTo, '--migrate-to'))) return;
  const which = options.socket === undefined ? '--backend' : '--socket';
  const text = `is ${which}, too; give that of another back-end`;
  throw new ConfigError('--migrate-to', `${migrateTo} ${text}`);
}

/** Two back-ends of one device, interface or socket are one. */
function placeOf(spec: BackendSpec): string {
  switch (spec.kind) {
    case 'vhost-user':
      return resolve(spec.socket);
    case 'vhost-vdpa':
      return resolve(spec.device);
    case 'vhost-net':
      return `tap ${spec.tap}`;
    case 'in-process':
      return spec.tap === null ? 'in-process' : `tap ${spec.tap}`;
  }
}

/** As people wrote it: a socket by its path alone. */
function nameOf(spec: BackendSpec): string {
  return spec.kind === 'vhost-user' ? spec.socket : backendText(spec);
}

/** SIGUSR1 moves the guest to `--migrate-to`, the next one back. Returns what ends that. */
export function moveOnSignal(options: GuestOptions, guest: NetGuest): () => void {
  if (options.migrateTo === undefined) return () => undefined;
  const from = backendOf(options);
  const to = parseBackendOrSocket(options.migrateTo, '--migrate-to');
  let [here, there] = [from, to.kind === 'vhost-user' ? { ...to, server: options.server } : to];
  const onSignal = (): void => {
    if (guest.moving) return;
    const { mtu = null, queues } = options;
    const connector = new NetConnector({ backend: there, mtu, queuePairs: queues });
    const connect = (signal?: AbortSignal) => connector.connect(signal, true);
    migrateGuest(guest, { connect }).then(
      (report) => {
        const { pauseMs, rounds, stateBytes } = report;
        happened(
          options,
          { event: 'moved', to: nameOf(there), ...report },
          `moved to ${nameOf(there)} in ${report.totalMs.toFixed(0)} ms, of which it stood ` +
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
    const name = nameOf(backendOf(options));
    const text = `the back-end is gone, waiting for the next one at ${name}`;
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
