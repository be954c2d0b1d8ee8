/** A LUKS2 header on an image that nobody else uses: what `vring format luks2` does. */
import { openFileImage } from '../disk-image.ts';
import { readKeyFile } from '../crypt/crypt-layer.ts';
import { DATA_AT, formatLuks2, type FormatOptions } from '../crypt/format-luks2.ts';
import { openLayers } from './open-layers.ts';

export type FormatImageOptions = Omit<FormatOptions, 'passphrase'> & {
  /** A regular file or a block device. */
  readonly path: string;
  /** All of it is the passphrase. */
  readonly keyFile: string;
};

export type FormattedImage = { readonly uuid: string; readonly dataBytes: number };

/**
 * @throws CryptError: not empty, too small, no key. VringError ERR_VRING_DISK_LOCKED: somebody has
 *   it. SysError.
 */
export async function formatLuks2Image(options: FormatImageOptions): Promise<FormattedImage> {
  const { path, keyFile, ...how } = options;
  const passphrase = await readKeyFile(keyFile);
  try {
    const file = { kind: 'file', path } as const;
    const image = openFileImage({ path, direct: 'off', uring: 'off' });
    try {
      const layer = await openLayers([file], image.spec, { readOnly: false });
      try {
        const uuid = await formatLuks2(layer, { ...how, passphrase });
        return { uuid, dataBytes: layer.sizeBytes - DATA_AT };
      } finally {
        await layer.close();
      }
    } finally {
      await image.close();
    }
  } finally {
    passphrase.fill(0);
  }
}
