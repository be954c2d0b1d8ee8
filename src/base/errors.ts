/**
 * The errors of vring. A *fault* is a guest that broke virtio (a negative code, see
 * `virtqueue/faults.ts`); an *error* is a peer, a kernel, a file or a configuration that failed,
 * and is one of these classes; an *assertion* is our own mistake.
 *
 * Callers match `code`, which is stable, never the class or the text: two copies of the package
 * may be loaded.
 */

/** What the owner of the failed thing should do next. */
export type Recovery =
  | 'retry' //      the same call may succeed later
  | 'reconnect' //  this session is over; a new connection may succeed
  | 'reset' //      the device or queue must be reset by its driver
  | 'fatal'; //     nothing but a change of configuration or code helps

export type VringErrorOptions = { recovery?: Recovery; cause?: unknown };

/** Base of all errors thrown by vring. `code` is `ERR_VRING_...` and part of the API. */
export class VringError extends Error {
  readonly code: string;
  readonly recovery: Recovery;

  constructor(code: string, message: string, options: VringErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.recovery = options.recovery ?? 'fatal';
  }
}

/** A system call failed. `errno` is positive, `errnoName` its symbol. */
export class SysError extends VringError {
  readonly syscall: string;
  readonly errno: number;
  readonly errnoName: string;

  constructor(
    syscall: string,
    errno: number,
    errnoName: string,
    detail: string,
    options: VringErrorOptions = {},
  ) {
    super('ERR_VRING_SYS', `${syscall} failed with ${errnoName}: ${detail}`, options);
    this.syscall = syscall;
    this.errno = errno;
    this.errnoName = errnoName;
  }
}

/** The peer of a protocol sent what it must not. The session ends with this as its reason. */
export class ProtocolError extends VringError {
  /** Name of the message, as the specification spells it: `VHOST_USER_SET_MEM_TABLE`. */
  readonly request: string;
  /** The field at fault: `size`, `fds`, `regions[1].memory_size`. */
  readonly field: string;

  constructor(
    code: string,
    request: string,
    field: string,
    problem: string,
    options: VringErrorOptions = {},
  ) {
    super(code, `${request}: ${field}: ${problem}`, { recovery: 'reconnect', ...options });
    this.request = request;
    this.field = field;
  }
}

/** A configuration or command line says something that cannot be done. */
export class ConfigError extends VringError {
  /** Where: `ports[2].socket`, `--port`. */
  readonly path: string;

  constructor(path: string, problem: string, options: VringErrorOptions = {}) {
    super('ERR_VRING_CONFIG', `${path}: ${problem}`, options);
    this.path = path;
  }
}

/** The text of whatever was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
