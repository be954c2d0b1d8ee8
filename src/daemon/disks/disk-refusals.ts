/** What is said of disks and adapters that cannot be added, or that come back. */
import { ConfigError, messageOf, VringError } from '../../base/errors.ts';
import { ERR_DISK_EXISTS, ERR_DISK_OPEN } from './disk-control.ts';
import type { DiskOrigin } from './disk-types.ts';

export function socketTaken(socket: string, owner: string): VringError {
  return new VringError(ERR_DISK_EXISTS, `socket ${socket} already belongs to ${owner}`);
}

export function exists(what: string): VringError {
  return new VringError(ERR_DISK_EXISTS, `there is ${what} already`);
}

export function comesBack({ origin }: { readonly origin: DiskOrigin }): string {
  return origin === 'config' ? '; a restart brings it back: see the file' : '';
}

/** What was asked for is at fault, or what is there; never the request's form. */
export function openError(what: string, name: string, error: unknown): unknown {
  if (error instanceof ConfigError) return error;
  const text = `${what} ${name} cannot be opened: ${messageOf(error)}`;
  return new VringError(ERR_DISK_OPEN, text, { cause: error });
}
