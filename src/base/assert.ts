import { VringError } from './errors.ts';

/**
 * States what our own code guarantees. Never reachable from guest memory, a peer, a file or a
 * configuration: those are faults and errors. The message is built only when it fails.
 */
export function assert(condition: boolean, message?: string | (() => string)): asserts condition {
  if (condition) return;
  const text = typeof message === 'function' ? message() : (message ?? 'assertion failed');
  throw new VringError('ERR_VRING_ASSERTION', text);
}

/** For the arm of a `switch` that the types exclude. */
export function unreachable(value: never): never {
  throw new VringError('ERR_VRING_ASSERTION', `unreachable: ${String(value)}`);
}
