/** What every `vring serve` has: one ready line, then a signal, then an orderly end. */
import { complain, print, printJson } from './output.ts';

/** The ready line; `--json` prints all of it. */
export type Readiness = {
  readonly device: string;
  /** VDUSE: the name. vhost-user: null. */
  readonly name: string | null;
  readonly socket: string | null;
  /** A socket that was handed down. */
  readonly fd?: number | null;
  /** `virtio_vdpa`, `vhost_vdpa`; null: no driver. */
  readonly driver: string | null;
  /** `/dev/vda`, `/dev/vhost-vdpa-0`. */
  readonly node: string | null;
  readonly interface: string | null;
  /** URIs of NBD exports. */
  readonly exports?: readonly string[];
  /** The device was there, of a process that ended. */
  readonly resumed: boolean;
};

/** What is said of a running service; flat, for lines of JSON. */
export type ServiceEvent = {
  readonly event: string;
  readonly [name: string]: string | number | boolean | null;
};

/** The same for people. */
export function eventLine({ event: kind, ...rest }: ServiceEvent): string {
  const words = Object.entries(rest).map(([name, value]) => `${name} ${String(value)}`);
  return [kind, ...words].join(', ');
}

/** Ends late only where the kernel's driver does not let go. */
const END_TIMEOUT_MS = 35_000;

export type Served = {
  readonly readiness: Readiness;
  /** Resolves when nothing works any more. */
  readonly failed: Promise<Error>;
  /** Resolves when there is nobody left to serve; never, unless somebody was handed down. */
  readonly ended?: Promise<void>;
  close(): Promise<void>;
};

/** Serves until a signal. Returns the exit status. */
export async function serveUntilSignal(
  start: () => Promise<Served>,
  options: { readonly json?: boolean; readonly quiet?: boolean },
): Promise<number> {
  const signal = nextSignal();
  const served = await start();
  const { readiness } = served;
  if (options.json === true) printJson(readiness, 'line');
  else print(readyLine(readiness));
  const ended = served.ended?.then(() => 'the front-end is gone');
  const ends = [signal, served.failed, ...(ended === undefined ? [] : [ended])];
  const cause = await Promise.race<string | Error>(ends);
  const isFailure = cause instanceof Error;
  if (isFailure) complain(cause.message);
  else if (options.quiet !== true) complain(`${cause}: ending`);
  const timer = setTimeout(() => {
    complain('the driver of the device does not let go of it; ending without');
    process.exit(1);
  }, END_TIMEOUT_MS);
  await served.close();
  clearTimeout(timer);
  return isFailure ? 1 : 0;
}

function readyLine(ready: Readiness): string {
  const { device, name, socket, driver, exports = [] } = ready;
  if (device === 'nbd') return `ready: ${exports.join(', ')}`;
  const also = exports.map((uri) => `, exported as ${uri}`).join('');
  if (socket !== null) return `ready: ${device} on ${socket}${also}`;
  if (ready.fd != null) return `ready: ${device} on fd ${ready.fd}${also}`;
  const what = ready.interface ?? ready.node;
  const where = what === null ? (driver ?? 'not on the vDPA bus') : `${what} (${driver})`;
  return `ready: ${device} ${name}: ${where}${ready.resumed ? ', goes on' : ''}${also}`;
}

/** SIGHUP ends too: the terminal of a foreground process went away. */
function nextSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let count = 0;
    for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      process.on(name, () => {
        count++;
        if (count > 1) process.exit(1);
        resolve(name);
      });
    }
  });
}
