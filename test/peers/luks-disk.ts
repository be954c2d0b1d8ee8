/** A LUKS2 disk in a file, between cryptsetup and our own code. */
import { truncateSync, writeFileSync } from 'node:fs';
import { type CryptLayer, openCryptLayer } from '../../src/storage/crypt/crypt-layer.ts';
import { formatLuks2, type FormatOptions } from '../../src/storage/crypt/format-luks2.ts';
import { FileLayer } from '../../src/storage/layer/file-layer.ts';
import { openFd } from '../../src/sys/index.ts';
import { O_RDWR } from '../../src/wire/linux.ts';

export class LuksDisk {
  readonly path: string;
  readonly keyFile: string;

  /** An empty file of `sizeBytes`; `keyFile` has the key. */
  constructor(path: string, sizeBytes: number, keyFile: string) {
    this.path = path;
    this.keyFile = keyFile;
    writeFileSync(path, '');
    truncateSync(path, sizeBytes);
  }

  /** Formats it with our code; the UUID. */
  async format(options: FormatOptions): Promise<string> {
    const below = this.#below();
    try {
      return await formatLuks2(below, options);
    } finally {
      await below.close();
    }
  }

  async open(): Promise<CryptLayer> {
    const below = this.#below();
    try {
      return await openCryptLayer(below, { kind: 'crypt', keyFile: this.keyFile });
    } catch (error) {
      await below.close();
      throw error;
    }
  }

  #below(): FileLayer {
    const file = openFd(this.path, O_RDWR);
    return new FileLayer({ file, path: this.path, readOnly: false });
  }
}
