/** What an HTTP server did that makes a disk of it impossible, or one read of it. */
import { VringError, type VringErrorOptions } from '../../base/errors.ts';

/**
 * CONNECT: no connection, or it broke. TIMEOUT: it took too long. STATUS: it said no. RANGES: it
 * has no ranges. BODY: it sent something else than was asked for. REDIRECT: it sends us around.
 * CHANGED: the object is another one than it was. OBJECT: it is no disk that we can use.
 */
export type HttpErrorCode =
  | 'ERR_VRING_HTTP_CONNECT'
  | 'ERR_VRING_HTTP_TIMEOUT'
  | 'ERR_VRING_HTTP_STATUS'
  | 'ERR_VRING_HTTP_RANGES'
  | 'ERR_VRING_HTTP_BODY'
  | 'ERR_VRING_HTTP_REDIRECT'
  | 'ERR_VRING_HTTP_CHANGED'
  | 'ERR_VRING_HTTP_OBJECT';

/** Recovery 'retry': the same request may succeed in a moment. */
export class HttpError extends VringError {
  declare readonly code: HttpErrorCode;

  constructor(code: HttpErrorCode, message: string, options: VringErrorOptions = {}) {
    super(code, message, options);
  }
}
