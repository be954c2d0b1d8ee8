/** What can be wrong with memory that somebody asks us to map. */
import { VringError } from '../base/errors.ts';

export type MemoryErrorCode =
  | 'ERR_VRING_MEMORY_SIZE' //       zero, or too large to handle
  | 'ERR_VRING_MEMORY_ADDRESS' //    the range runs over 2^53
  | 'ERR_VRING_MEMORY_FD' //         the fd cannot be mapped, or is shorter than it must be
  | 'ERR_VRING_MEMORY_ALIGNMENT' //  not a multiple of the fd's page size
  | 'ERR_VRING_MEMORY_OVERLAP' //    two regions claim the same addresses
  | 'ERR_VRING_MEMORY_SLOTS' //      more regions than we serve
  | 'ERR_VRING_MEMORY_ARENA'; //     no room left in the arena

/** A region of guest memory cannot be used. `field` is the name that vhost-user gives it. */
export class MemoryError extends VringError {
  readonly field: string;

  constructor(code: MemoryErrorCode, field: string, problem: string, cause?: unknown) {
    super(code, problem, { recovery: 'reconnect', cause });
    this.field = field;
  }
}

/** `0x…`, as addresses and sizes are read best. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
