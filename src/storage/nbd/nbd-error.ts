/** What an NBD peer did wrong; the connection ends with it. */
import { VringError, type VringErrorOptions } from '../../base/errors.ts';

/**
 * `ERR_VRING_NBD_PROTOCOL`: it broke the protocol. `ERR_VRING_NBD_CLOSED`: the connection ended.
 * `ERR_VRING_NBD_TIMEOUT`: it took too long. `ERR_VRING_NBD_REFUSED`: it said no.
 * `ERR_VRING_NBD_CHANGED`: the export is another one than before. `ERR_VRING_NBD_EXPORT`: what it
 * offers is no disk that we can use.
 */
export type NbdErrorCode =
  | 'ERR_VRING_NBD_PROTOCOL'
  | 'ERR_VRING_NBD_CLOSED'
  | 'ERR_VRING_NBD_TIMEOUT'
  | 'ERR_VRING_NBD_REFUSED'
  | 'ERR_VRING_NBD_CHANGED'
  | 'ERR_VRING_NBD_EXPORT';

const MAY_HELP = new Set<NbdErrorCode>([
  'ERR_VRING_NBD_PROTOCOL',
  'ERR_VRING_NBD_CLOSED',
  'ERR_VRING_NBD_TIMEOUT',
]);

export class NbdError extends VringError {
  constructor(code: NbdErrorCode, message: string, options: VringErrorOptions = {}) {
    super(code, message, { recovery: MAY_HELP.has(code) ? 'reconnect' : 'fatal', ...options });
  }
}

export function protocolError(what: string): NbdError {
  return new NbdError('ERR_VRING_NBD_PROTOCOL', `the NBD peer broke the protocol: ${what}`);
}

// oxlint-disable-next-line no-control-regex
const CONTROLS = /[\u0000-\u001f\u007f-\u009f]/g;

/** Text of a peer, for a message: short, on one line, nothing that a terminal acts on. */
export function peerText(bytes: Buffer): string {
  const text = bytes.subarray(0, 400).toString('utf8').replace(CONTROLS, '?');
  return text.length > 200 ? `${text.slice(0, 200)}...` : text;
}
