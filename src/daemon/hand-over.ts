/**
 * A running switch gives everything that it has to a new process, and ends.
 *
 * Two phases. While this process serves on, the successor learns what there is, maps the guests'
 * memory and builds the ports (`prepare`, `ready`). Then the data plane stands still, rings are
 * let go of, and what changed last goes over (`switch`, `restored`); the guests wait for this part
 * only. The `commit` is ours: until it is sent, any failure makes this process resume and go on as
 * if nothing had been; once it is sent, this process never touches a ring again.
 */
import { messageOf, VringError } from '../base/errors.ts';
import { connectUnix, type Fd, peerCredentials } from '../sys/index.ts';
import { ApiError } from './api-error.ts';
import {
  ERR_HAND_OVER,
  ERR_HAND_OVER_FORMAT,
  formatError,
  HAND_OVER_FORMAT,
  HandOverChannel,
  type HandOverMessage,
  SentFds,
} from './hand-over-channel.ts';
import {
  FailureSchema,
  type HandOverPlan,
  type HandOverRequest,
  type HandOverState,
  parseBody,
  RunningSchema,
} from './hand-over-format.ts';

/** The successor boots a worker and maps memory. */
const PREPARE_TIMEOUT_MS = 30_000;
/** Nobody serves meanwhile: a successor that takes longer than this does not get the guests. */
const SWITCH_TIMEOUT_MS = 2_000;
/** The same where disks are closed and opened: their images may be on servers elsewhere. */
const SWITCH_DISKS_TIMEOUT_MS = 10_000;
/** To hear how it went; nothing depends on it any more. */
const REPORT_TIMEOUT_MS = 10_000;

/** What a switch must be able to do to be handed over. */
export interface HandOverSource {
  /** Does everything once in vain, so that it is quick when it counts. */
  rehearse(): Promise<void>;
  /** What there is, while it runs. Descriptors are borrowed; `control` is the control socket. */
  plan(fds: SentFds, control: Fd): HandOverPlan;
  /** Stands still, and says where. When it fails, `resume` undoes what it did. */
  suspend(fds: SentFds): Promise<{ state: HandOverState; macs: Uint8Array }>;
  resume(): Promise<void>;
  /** Lets go of everything and ends nothing. */
  surrender(): Promise<void>;
  /** Runs while nothing else changes the switch. */
  exclusively<T>(work: () => Promise<T>): Promise<T>;
  report(kind: string, message: string): void;
}

/** Whether a control is a switch that can be handed over. */
export function canHandOver(control: object): control is HandOverSource {
  return 'surrender' in control && 'exclusively' in control;
}

export type HandedOver = { readonly pid: number; readonly pauseMs: number | null };

/**
 * Connects to the process that asks, if it is one of this user's.
 * @throws ApiError, VringError ERR_VRING_HAND_OVER_FORMAT.
 */
export function connectSuccessor(request: HandOverRequest): {
  channel: HandOverChannel;
  pid: number;
} {
  if (request.format !== HAND_OVER_FORMAT) {
    const { message } = formatError(request.format);
    throw new ApiError(409, ERR_HAND_OVER_FORMAT, `vring ${request.version}: ${message}`);
  }
  const socket = connectUnix(request.socket);
  const { uid, pid } = peerCredentials(socket.number);
  const own = process.geteuid!();
  if (uid !== own) {
    socket.close();
    const message = `process ${pid} belongs to user ${uid}, this switch to ${own}; run it as that`;
    throw new ApiError(403, ERR_HAND_OVER, message);
  }
  return { channel: new HandOverChannel(socket), pid };
}

/**
 * Hands over to whoever is at the other end of the channel.
 * @throws VringError with the reason; the source runs as before then.
 */
export async function handOver(
  channel: HandOverChannel,
  source: HandOverSource,
  control: Fd,
): Promise<void> {
  await source.rehearse();
  const planFds = new SentFds();
  const plan = source.plan(planFds, control);
  const images = plan.disks.length + plan.adapters.length;
  const timeoutMs = images === 0 ? SWITCH_TIMEOUT_MS : SWITCH_DISKS_TIMEOUT_MS;
  await channel.send('prepare', plan, planFds);
  await expect(channel, 'ready', PREPARE_TIMEOUT_MS);
  try {
    const fds = new SentFds();
    const { state, macs } = await inTime(source.suspend(fds), timeoutMs);
    await channel.send('switch', state, fds, macs, timeoutMs);
    await expect(channel, 'restored', timeoutMs);
    await channel.send('commit', null, new SentFds(), undefined, timeoutMs);
  } catch (error) {
    await source.resume();
    throw error;
  }
}

/** How long the guests waited, as the successor measured it; null when it does not say. */
export async function hearReport(channel: HandOverChannel): Promise<number | null> {
  try {
    const message = await expect(channel, 'running', REPORT_TIMEOUT_MS);
    return parseBody(RunningSchema, 'running', message.body).pauseMs;
  } catch {
    return null;
  }
}

/**
 * The next message, which must be of this kind.
 * @throws VringError with the other process's own code and words, when it says that it failed.
 */
export async function expect(
  channel: HandOverChannel,
  kind: string,
  timeoutMs: number,
): Promise<HandOverMessage> {
  const message = await channel.receive(timeoutMs);
  if (message.kind === kind) return message;
  message.fds.close();
  if (message.kind === 'failed') {
    const { code, message: text } = parseBody(FailureSchema, 'failed', message.body);
    throw new VringError(code, text);
  }
  throw new VringError(ERR_HAND_OVER, `"${message.kind}" came, expected "${kind}"`);
}

/** Says why this side gives up; the other side may be gone already. */
export async function sayFailed(channel: HandOverChannel, thrown: unknown): Promise<void> {
  const code = thrown instanceof VringError ? thrown.code : 'ERR_VRING_INTERNAL';
  const body = { code, message: messageOf(thrown) };
  await channel.send('failed', body, new SentFds(), undefined, 1000).catch(() => undefined);
}

function inTime<T>(work: Promise<T>, timeoutMs: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      const text = `this switch did not stand still within ${timeoutMs / 1000} s`;
      reject(new VringError(ERR_HAND_OVER, text));
    }, timeoutMs);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
