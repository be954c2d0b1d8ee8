import { VringError, type VringErrorOptions } from '../../base/errors.ts';

/** A LUKS2 header or key that cannot be used: `ERR_VRING_DISK_CRYPT`. No key material in it. */
export class CryptError extends VringError {
  constructor(message: string, options: VringErrorOptions = {}) {
    super('ERR_VRING_DISK_CRYPT', message, options);
  }
}
