/**
 * Live migration of a guest from one QEMU to another on this machine, driven over QMP of both:
 * capabilities first on both sides, then the destination listens, then the source sends, and with
 * postcopy is told to stop copying and run the guest over there.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { VringError } from '../base/errors.ts';
import type { LinuxGuest } from './qemu-process.ts';

export type MigrationOptions = {
  /** Start the guest at the destination before its memory is there; pages come when touched. */
  readonly postcopy?: boolean;
  /** Bytes per second of the copy, pages that are asked for apart; null: as fast as it goes. */
  readonly bytesPerSecond?: number | null;
  /** How long the guest may stand still at the end, milliseconds; by default QEMU's 300. */
  readonly downtimeLimitMs?: number | null;
  readonly timeoutMs?: number;
  /** Called about every 20 ms while memory is copied. With postcopy the first call ends precopy. */
  readonly onCopying?: (status: MigrationStatus) => void | Promise<void>;
  /**
   * Called when everything is there and neither side runs, for who compares them. The destination
   * must have been launched with `-S`; it is let run afterwards. Not with postcopy.
   */
  readonly beforeRunning?: () => void | Promise<void>;
};

/** `query-migrate`, the parts that we use. */
export type MigrationStatus = {
  readonly status?: string;
  readonly 'error-desc'?: string;
  readonly 'total-time'?: number;
  readonly downtime?: number;
  readonly ram?: {
    readonly transferred: number;
    readonly remaining: number;
    readonly 'dirty-sync-count': number;
    readonly 'postcopy-requests': number;
  };
};

export type MigrationResult = {
  readonly totalMs: number;
  /** How long the guest stood still, as QEMU measured it. */
  readonly downtimeMs: number;
  readonly transferredBytes: number;
  /** How often QEMU collected dirty pages: the rounds of precopy and the last, still one. */
  readonly dirtySyncs: number;
  /** Pages that the destination asked for. */
  readonly postcopyRequests: number;
};

const POLL_MS = 20;
const TIMEOUT_MS = 120_000;
const UNLIMITED = 2 ** 40;

/**
 * Resolves when the guest runs at the destination with all its memory. The source's QEMU stands
 * still then, and holds its port until it is closed.
 * @throws VringError `ERR_VRING_MIGRATION` with what both sides say.
 */
export async function migrateGuest(
  source: LinuxGuest,
  destination: LinuxGuest,
  options: MigrationOptions = {},
): Promise<MigrationResult> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-migration-'));
  try {
    await configure(source, destination, options);
    const uri = `unix:${join(folder, 's')}`;
    await destination.qmp('migrate-incoming', { uri });
    await source.qmp('migrate', { uri });
    return await watch(source, destination, options);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function configure(
  source: LinuxGuest,
  destination: LinuxGuest,
  options: MigrationOptions,
): Promise<void> {
  const postcopy = options.postcopy ?? false;
  const capabilities = [{ capability: 'postcopy-ram', state: postcopy }];
  for (const side of [source, destination]) {
    await side.qmp('migrate-set-capabilities', { capabilities });
  }
  const limit = options.bytesPerSecond ?? UNLIMITED;
  const parameters: Record<string, number> = {
    'max-bandwidth': limit,
    'max-postcopy-bandwidth': limit,
  };
  if (options.downtimeLimitMs != null) parameters['downtime-limit'] = options.downtimeLimitMs;
  await source.qmp('migrate-set-parameters', parameters);
}

async function watch(
  source: LinuxGuest,
  destination: LinuxGuest,
  options: MigrationOptions,
): Promise<MigrationResult> {
  const deadline = performance.now() + (options.timeoutMs ?? TIMEOUT_MS);
  let started = false;
  for (;;) {
    const now = await query(source);
    if (now.status === 'completed') {
      if (options.beforeRunning !== undefined) {
        await arrived(destination, deadline, false);
        await options.beforeRunning();
        await destination.qmp('cont');
      }
      await arrived(destination, deadline, true);
      return resultOf(now);
    }
    if (['failed', 'cancelled', 'postcopy-paused'].includes(now.status ?? '')) {
      throw await failure(source, destination, now);
    }
    if (performance.now() > deadline) throw await failure(source, destination, now);
    if (now.status === 'active') {
      await options.onCopying?.(now);
      if (options.postcopy && !started) {
        started = true;
        await source.qmp('migrate-start-postcopy');
      }
    }
    await sleep(POLL_MS);
  }
}

async function query(side: LinuxGuest): Promise<MigrationStatus> {
  return (await side.qmp('query-migrate')) as MigrationStatus;
}

/** The source is done when its last byte is sent; the destination still loads devices. */
async function arrived(destination: LinuxGuest, deadline: number, mustRun: boolean): Promise<void> {
  for (;;) {
    const state = (await destination.qmp('query-status')) as { running: boolean; status: string };
    const incoming = (await query(destination)).status ?? 'completed';
    if ((state.running || !mustRun) && incoming === 'completed') return;
    if (performance.now() > deadline) {
      const text = `the destination is ${state.status}, its migration ${incoming}`;
      throw new VringError('ERR_VRING_MIGRATION', text);
    }
    await sleep(POLL_MS);
  }
}

async function failure(
  source: LinuxGuest,
  destination: LinuxGuest,
  last: MigrationStatus,
): Promise<VringError> {
  const there = await query(destination).catch((error: Error) => ({ status: error.message }));
  const tail = (guest: LinuxGuest): string =>
    guest.consoleLog.trimEnd().split('\n').slice(-10).join('\n  | ');
  const text =
    `migration of ${source.name} is ${last.status} (${last['error-desc'] ?? 'no reason given'}), ` +
    `the destination says ${JSON.stringify(there)}\nsource:\n  | ${tail(source)}\n` +
    `destination:\n  | ${tail(destination)}`;
  return new VringError('ERR_VRING_MIGRATION', text);
}

function resultOf(status: MigrationStatus): MigrationResult {
  return {
    totalMs: status['total-time'] ?? 0,
    downtimeMs: status.downtime ?? 0,
    transferredBytes: status.ram?.transferred ?? 0,
    dirtySyncs: status.ram?.['dirty-sync-count'] ?? 0,
    postcopyRequests: status.ram?.['postcopy-requests'] ?? 0,
  };
}
