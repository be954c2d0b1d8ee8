/** `vring switch`: the daemon, in the foreground. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { ConfigError } from '../base/errors.ts';
import { MAX_WORKERS } from '../base/limits.ts';
import {
  buildConfig,
  EventLog,
  problemLines,
  readinessLine,
  SwitchDaemon,
  type StartSwitch,
} from '../daemon/index.ts';
import type { HandedOver } from '../daemon/hand-over.ts';
import type { SwitchConfig } from '../daemon/switch-types.ts';
import { ApiClient } from './client.ts';
import { complain, counted, print, printable, printError, printJson } from './output.ts';

export type SwitchOptions = {
  readonly config?: string;
  readonly port?: readonly string[];
  readonly control?: string;
  readonly http?: string;
  readonly latency?: boolean;
  readonly throughput?: boolean;
  readonly power?: boolean;
  readonly workers?: string;
  readonly workerCores?: string;
  readonly check?: boolean;
  readonly takeOver?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
};

/** Sessions end in milliseconds; a peer that hangs must not keep a service from stopping. */
const CLOSE_TIMEOUT_MS = 5000;

export function readSwitchConfig(options: SwitchOptions): SwitchConfig {
  refuseUnheard(options);
  const name = options.config;
  const control = options.control ?? (process.env.VRING_CONTROL || undefined);
  return buildConfig({
    file: name === undefined ? undefined : { name, text: readConfigFile(name) },
    ports: options.port,
    control: control === undefined ? undefined : resolve(control),
    http: options.http,
    workers: options.workers === undefined ? undefined : parseWorkers(options.workers),
    workerCores: options.workerCores === undefined ? undefined : parseCores(options.workerCores),
    policy: policyOf(options),
  });
}

/** With `--take-over`: is there more than where the running switch listens? */
const isNewer = ({ config, port }: SwitchOptions): boolean =>
  config !== undefined || port !== undefined;

/** What a successor that has the configuration of its predecessor would not hear. */
function refuseUnheard(options: SwitchOptions): void {
  if (!options.takeOver || isNewer(options)) return;
  const { http, latency, throughput, power, workers, workerCores } = options;
  const unheard = { http, latency, throughput, power, workers, 'worker-cores': workerCores };
  const given = Object.entries(unheard).find(([, value]) => value !== undefined)?.[0];
  if (given === undefined) return;
  const text =
    'with --take-over alone the new process runs with the configuration of the old one; ' +
    'leave it out, or give the whole configuration, by --config or --port';
  throw new ConfigError(`--${given}`, text);
}

/** One of the three flags that name a policy. */
function policyOf(options: SwitchOptions): string | undefined {
  const given = (['latency', 'throughput', 'power'] as const).filter((name) => options[name]);
  if (given.length > 1) {
    throw new ConfigError(`--${given[1]}`, `contradicts --${given[0]}; remove one`);
  }
  return given[0];
}

function parseWorkers(text: string): number {
  const count = Number(text);
  if (/^\d+$/.test(text) && count >= 1 && count <= MAX_WORKERS) return count;
  throw new ConfigError('--workers', `'${text}', expected is a number from 1 to ${MAX_WORKERS}`);
}

function parseCores(text: string): number[] {
  if (/^\d{1,4}(,\d{1,4})*$/.test(text)) return text.split(',').map(Number);
  throw new ConfigError('--worker-cores', `'${text}', expected is a list of cores, such as 2,3`);
}

function readConfigFile(name: string): string {
  try {
    return readFileSync(name === '-' ? 0 : name, 'utf8');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'there is no such file' : message;
    throw new ConfigError('--config', `${name}: ${why}`, { cause });
  }
}

/** Runs until a signal. Returns the exit status. */
export async function runSwitch(options: SwitchOptions, startSwitch: StartSwitch): Promise<number> {
  let config: SwitchConfig;
  try {
    config = readSwitchConfig(options);
  } catch (thrown) {
    if (!(thrown instanceof ConfigError)) throw thrown;
    for (const line of problemLines(thrown)) complain(line);
    if (options.json) printError(thrown.code, problemLines(thrown).join('\n'));
    return 2;
  }
  if (options.check) {
    if (options.json) printJson(config);
    else {
      const disks = config.disks ?? [];
      const adapters = config.scsi ?? [];
      const units = adapters.flatMap((adapter) => adapter.units);
      const count = disks.length + units.length;
      const and = count + adapters.length === 0 ? '' : `, ${counted(count, 'disk')}`;
      print(`the configuration is good: ${counted(config.ports.length, 'port')}${and}`);
    }
    return 0;
  }
  const signal = nextSignal();
  const { daemon, tookOver = null } = options.takeOver
    ? await takeOverRunning(options, config)
    : { daemon: await SwitchDaemon.start(config, startSwitch) };
  if (!options.quiet) showEvents(daemon, options.json ?? false);
  const readiness = await daemon.readiness();
  if (options.json) printJson(tookOver === null ? readiness : { ...readiness, tookOver }, 'line');
  else print(readinessLine(readiness));

  const cause = await Promise.race([signal, daemon.failed, daemon.handedOver]);
  if (typeof cause === 'object' && 'pid' in cause) {
    if (!options.quiet) complain(handedOverLine(cause));
    return 0;
  }
  if (cause instanceof Error) {
    complain(`the data plane failed: ${cause.message}`);
    await closeInTime(daemon).catch(() => undefined); // what fails now fails for that reason
    return 1;
  }
  if (!options.quiet) complain(`${cause}: ending`);
  await closeInTime(daemon);
  return 0;
}

/**
 * Without a file and ports of its own, the successor runs with the configuration of its
 * predecessor; `config` says then no more than where that one listens.
 */
async function takeOverRunning(options: SwitchOptions, config: SwitchConfig) {
  const { takeOver } = await import('../daemon/take-over.ts');
  const client = new ApiClient(config.control.path);
  const { daemon, pauseMs, predecessor } = await takeOver({
    ask: (body) => client.json('/v1/hand-over', { method: 'POST', body }),
    config: isNewer(options) ? config : null,
  });
  const { pid, version } = predecessor;
  if (!options.quiet) {
    complain(`took over from process ${pid}, vring ${version}; pause ${pauseMs.toFixed(1)} ms`);
  }
  return { daemon, tookOver: { pid, version, pauseMs: Number(pauseMs.toFixed(3)) } };
}

function handedOverLine({ pid, pauseMs }: HandedOver): string {
  const pause = pauseMs === null ? 'it does not say how' : `pause ${pauseMs.toFixed(1)} ms`;
  return `handed over to process ${pid}; ${pause}`;
}

function showEvents(daemon: SwitchDaemon, json: boolean): void {
  if (json) {
    daemon.control.on('event', (event) => printJson({ event }, 'line'));
    return;
  }
  const log = new EventLog((line) => process.stderr.write(`${printable(line)}\n`));
  // What a predecessor saw is on its own standard error.
  const own = new Date(performance.timeOrigin).toISOString();
  for (const event of daemon.control.events()) if (event.at >= own) log.add(event);
  daemon.control.on('event', (event) => log.add(event));
}

/** SIGHUP ends too: the terminal of a foreground process went away. */
function nextSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolveSignal) => {
    let count = 0;
    for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      process.on(name, () => {
        count++;
        if (count > 1) process.exit(1);
        resolveSignal(name);
      });
    }
  });
}

async function closeInTime(daemon: SwitchDaemon): Promise<void> {
  const timer = setTimeout(() => {
    complain(`a session did not end within ${CLOSE_TIMEOUT_MS / 1000} s; giving up on it`);
    process.exit(1);
  }, CLOSE_TIMEOUT_MS);
  await daemon.close().finally(() => clearTimeout(timer));
}
