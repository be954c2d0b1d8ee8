/** `vring format luks2`: an image whose data is encrypted, for the layer `crypt`. */
import { Command, Option } from 'commander';
import { ConfigError } from '../base/errors.ts';
import type { FormatImageOptions } from '../storage/index.ts';
import { between, bytes } from './option-values.ts';
import { print, printable, printJson } from './output.ts';

type Luks2Options = {
  readonly keyFile: string;
  readonly pbkdf: 'argon2id' | 'pbkdf2';
  readonly keySize: '256' | '512';
  readonly sectorSize: '512' | '1024' | '2048' | '4096';
  readonly iterations?: number;
  readonly memory?: number;
  readonly label: string;
  readonly force: boolean;
  readonly json: boolean;
};

const EXAMPLES = `
Examples:
  truncate -s 10G vm0.luks
  head -c 32 /dev/urandom > vm0.key && chmod 600 vm0.key
  vring format luks2 vm0.luks --key-file vm0.key
  vring disk --socket-path vm0.sock --layer crypt:./vm0.key --layer ./vm0.luks

The header is cryptsetup's: cryptsetup luksDump shows it, luksAddKey adds keys, open opens it.
The first 16 MiB are the header's, and must be zeros unless --force says that they may go.`;

export function formatCommand(): Command {
  const format = new Command('format')
    .summary('make an encrypted image')
    .description('Makes what layers of a disk expect to find on an image.');
  format
    .command('luks2 <image>')
    .summary('a LUKS2 header, for the layer crypt')
    .description('Writes a LUKS2 header, and a key slot that the key file opens.')
    .requiredOption('--key-file <path>', 'all of it is the passphrase (required)')
    .addOption(
      new Option('--cipher <name>', 'of the data').choices(['aes-xts-plain64']).default(CIPHER),
    )
    .addOption(
      new Option('--key-size <bits>', '256 is AES-128, 512 is AES-256, by XTS')
        .choices(['256', '512'])
        .default('512'),
    )
    .addOption(
      new Option('--sector-size <bytes>', 'encrypted sectors')
        .choices(['512', '1024', '2048', '4096'])
        .default('4096'),
    )
    .addOption(
      new Option('--pbkdf <name>', 'what a guess at the passphrase costs')
        .choices(['argon2id', 'pbkdf2'])
        .default('argon2id'),
    )
    .option('--iterations <n>', `of argon2id (${PASSES}) or pbkdf2 (${ROUNDS})`, between(1, 1e8))
    .option('--memory <bytes>', 'of argon2id (256M)', bytes)
    .option('--label <text>', 'a name in the header, at most 47 bytes', '')
    .option('--force', 'what is there now may go', false)
    .option('--json', 'JSON instead of text', false)
    .addHelpText('after', EXAMPLES)
    .action(formatLuks2);
  return format;
}

const CIPHER = 'aes-xts-plain64';
/** cryptsetup's least for Argon2; PBKDF2 so that a slot takes about a second here. */
const PASSES = 4;
const ROUNDS = 2_000_000;
const MEMORY_BYTES = 256 * 2 ** 20;

async function formatLuks2(image: string, options: Luks2Options): Promise<void> {
  const { label, force: replace, keyFile } = options;
  if (Buffer.byteLength(label) > 47) throw new ConfigError('--label', 'has more than 47 bytes');
  const how: FormatImageOptions = {
    path: image,
    keyFile,
    label,
    replace,
    keyBytes: options.keySize === '256' ? 32 : 64,
    sectorBytes: Number(options.sectorSize),
    kdf: costOf(options),
  };
  const { formatLuks2Image } = await import('../storage/index.ts');
  const { uuid, dataBytes } = await formatLuks2Image(how);
  if (options.json) return printJson({ image, uuid, dataBytes });
  print(`${printable(image)} is LUKS2, ${uuid}: ${dataBytes} bytes for data`);
}

function costOf({ pbkdf, iterations, memory }: Luks2Options): FormatImageOptions['kdf'] & object {
  if (pbkdf === 'pbkdf2') {
    if (memory !== undefined) throw new ConfigError('--memory', 'belongs to argon2id; remove it');
    return { type: pbkdf, iterations: inRange(iterations ?? ROUNDS, 1000, 100_000_000) };
  }
  const memoryKib = (memory ?? MEMORY_BYTES) / 1024;
  if (!Number.isInteger(memoryKib) || memoryKib < 32 || memoryKib > 2 ** 20) {
    throw new ConfigError('--memory', `${memory} bytes, expected whole KiB from 32K to 1G`);
  }
  return { type: pbkdf, memoryKib, passes: inRange(iterations ?? PASSES, 4, 10) };
}

function inRange(iterations: number, least: number, most: number): number {
  if (iterations >= least && iterations <= most) return iterations;
  throw new ConfigError('--iterations', `${iterations}, expected ${least} to ${most}`);
}
