/** `vring guest scsi ...`: a virtio-scsi driver on the command line. */
import { readFileSync, writeFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import { ConfigError, VringError } from '../base/errors.ts';
import { ScsiDisk, ScsiGuest } from '../guest/index.ts';
import * as wire from '../wire/virtio-scsi.ts';
import { runAction } from './guest-actions.ts';
import { print, printJson } from './output.ts';
import { parseUnitPlace } from '../daemon/disks/scsi-types.ts';

type ScsiOptions = {
  readonly socket: string;
  readonly unit: string;
  readonly queues: number;
  readonly ring: 'split' | 'packed';
  readonly json: boolean;
  readonly page?: number;
  readonly lba: number;
  readonly blocks: number;
  readonly out: string;
  readonly file: string;
};

type Answer = { readonly text: string; readonly value: Readonly<Record<string, unknown>> };

/** Bytes of one command. */
const STEP_BYTES = 1 << 16;
/** Commands at once. */
const DEPTH = 16;

const FUNCTIONS: Readonly<Record<string, number>> = {
  'abort-task-set': wire.VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
  'clear-task-set': wire.VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET,
  'nexus-reset': wire.VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
  'lun-reset': wire.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
  'query-task-set': wire.VIRTIO_SCSI_T_TMF_QUERY_TASK_SET,
};

const EXAMPLES = `
Examples:
  vring guest scsi --socket scsi.sock luns
  vring guest scsi --socket scsi.sock inquiry --unit 0:1 --page 0xb0
  vring guest scsi --socket scsi.sock read --unit 0:0 --lba 8 --blocks 8 --out part.raw
  vring guest scsi --socket scsi.sock verify --unit 0:1 --queues 2 --ring packed
  vring guest scsi --socket scsi.sock tmf lun-reset --unit 0:0

Exit status: 0 success, 1 failure, 2 wrong usage. write and verify change what is on the disk,
verify all of it.`;

/** Below `vring guest`. */
export function addScsiCommands(guest: Command): void {
  const scsi = guest
    .command('scsi')
    .summary('a virtio-scsi guest: find units, read, write, verify')
    .description('A virtio-scsi guest on a vhost-user socket, without a VM.')
    .requiredOption('--socket <path>', 'where the back-end listens')
    .option('--json', 'print results as JSON', false)
    .addHelpText('after', EXAMPLES);
  add(scsi, 'luns', 'find all units', (g) => luns(g));
  add(scsi, 'inquiry', 'what a unit says of itself', inquiry).option(
    '--page <code>',
    'a page of vital product data, such as 0xb0',
    integer(0, 255),
  );
  const lba = integer(0, Number.MAX_SAFE_INTEGER);
  add(scsi, 'read', 'blocks of a unit into a file', read)
    .option('--lba <n>', 'first block', lba, 0)
    .option('--blocks <n>', 'how many', integer(1, 2 ** 21), 1)
    .requiredOption('--out <file>', 'where to');
  add(scsi, 'write', 'a file onto a unit', write)
    .option('--lba <n>', 'first block', lba, 0)
    .requiredOption('--file <file>', 'where from');
  add(scsi, 'verify', 'write all of a unit, and read it again', verify);
  const functions = Object.keys(FUNCTIONS).join(', ');
  add(scsi, 'tmf <function>', `task management: ${functions}`, manage);
}

function add(
  scsi: Command,
  name: string,
  summary: string,
  action: (guest: ScsiGuest, options: ScsiOptions, argument: string) => Promise<Answer>,
): Command {
  return scsi
    .command(name)
    .summary(summary)
    .description(summary)
    .option('--unit <T:L>', 'target and LUN', '0:0')
    .option('--queues <n>', 'request queues', integer(1, 64), 1)
    .addOption(
      new Option('--ring <format>', 'ring format').choices(['split', 'packed']).default('split'),
    )
    .action(async (...given: unknown[]) => {
      const command = given.at(-1) as Command;
      const argument = typeof given[0] === 'string' ? given[0] : '';
      const options = command.optsWithGlobals<ScsiOptions>();
      process.exitCode = await runAction(async () => {
        const { socket, queues, ring } = options;
        const guest = await ScsiGuest.connect(socket, { queues, packed: ring === 'packed' });
        try {
          const { text, value } = await action(guest, options, argument);
          if (options.json) printJson(value);
          else print(text);
        } finally {
          await guest.close();
        }
        return 0;
      }, options.json);
    });
}

async function luns(guest: ScsiGuest): Promise<Answer> {
  const units: { unit: string; blocks: number; blockBytes: number }[] = [];
  for (let target = 0; target <= guest.config.maxTarget; target++) {
    for (const lun of await lunsOf(guest, target)) {
      const { blocks, blockBytes } = await new ScsiDisk(guest, target, lun).capacity();
      units.push({ unit: `${target}:${lun}`, blocks, blockBytes });
    }
  }
  const lines = units.map(({ unit, blocks, blockBytes }) => `${unit}: ${blocks} of ${blockBytes}`);
  return { text: lines.join('\n'), value: { units } };
}

/** A target that is not there has none. */
async function lunsOf(guest: ScsiGuest, target: number): Promise<number[]> {
  const inquiry = new Uint8Array([0x12, 0, 0, 0, 36, 0]);
  const { response } = await guest.command({ target, lun: 0, cdb: inquiry, inBytes: 36 });
  if (response === wire.VIRTIO_SCSI_S_BAD_TARGET) return [];
  return new ScsiDisk(guest, target, 0).luns();
}

async function inquiry(guest: ScsiGuest, options: ScsiOptions): Promise<Answer> {
  const bytes = await diskOf(guest, options).inquiry(options.page ?? null);
  const hex = Buffer.from(bytes).toString('hex');
  if (options.page !== undefined) return { text: hex, value: { page: options.page, hex } };
  const text = (from: number, to: number): string =>
    Buffer.from(bytes.subarray(from, to)).toString('latin1').trim();
  const value = {
    type: bytes[0]! & 0x1f,
    vendor: text(8, 16),
    product: text(16, 32),
    revision: text(32, 36),
    hex,
  };
  return { text: `${value.vendor} ${value.product} ${value.revision}, type ${value.type}`, value };
}

async function read(guest: ScsiGuest, options: ScsiOptions): Promise<Answer> {
  const disk = diskOf(guest, options);
  const { blockBytes } = await disk.capacity();
  const step = STEP_BYTES / blockBytes;
  const pieces: Uint8Array[] = [];
  for (let done = 0; done < options.blocks; done += step) {
    const blocks = Math.min(step, options.blocks - done);
    pieces.push(await disk.read(options.lba + done, blocks, blockBytes));
  }
  const bytes = Buffer.concat(pieces);
  writeFileSync(options.out, bytes);
  return { text: `${bytes.length} bytes`, value: { bytes: bytes.length } };
}

async function write(guest: ScsiGuest, options: ScsiOptions): Promise<Answer> {
  const disk = diskOf(guest, options);
  const { blockBytes } = await disk.capacity();
  const bytes = readFileSync(options.file);
  if (bytes.length % blockBytes !== 0) {
    const text = `${options.file} has ${bytes.length} bytes, no whole blocks of ${blockBytes}`;
    throw new ConfigError('--file', text);
  }
  for (let at = 0; at < bytes.length; at += STEP_BYTES) {
    const piece = bytes.subarray(at, at + STEP_BYTES);
    await disk.write(options.lba + at / blockBytes, piece, blockBytes);
  }
  await disk.flush();
  return { text: `${bytes.length} bytes, durable`, value: { bytes: bytes.length } };
}

/** Each block says where it is; all are written before the first is read. */
async function verify(guest: ScsiGuest, options: ScsiOptions): Promise<Answer> {
  const disk = diskOf(guest, options);
  const { blocks, blockBytes } = await disk.capacity();
  const step = STEP_BYTES / blockBytes;
  const each = async (work: (lba: number, count: number) => Promise<void>): Promise<void> => {
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < blocks) {
        const lba = next;
        next += step;
        await work(lba, Math.min(step, blocks - lba));
      }
    };
    await Promise.all(Array.from({ length: DEPTH }, lane));
  };
  await each((lba, count) => {
    return disk.write(lba, pattern(lba, count, blockBytes), blockBytes, lba / step);
  });
  await disk.flush();
  await each(async (lba, count) => {
    const bytes = await disk.read(lba, count, blockBytes, lba / step + 1);
    if (Buffer.compare(bytes, pattern(lba, count, blockBytes)) === 0) return;
    const text = `blocks ${lba} to ${lba + count - 1} are not what was written`;
    throw new VringError('ERR_VRING_GUEST_SCSI', text);
  });
  const bytes = blocks * blockBytes;
  return { text: `${bytes} bytes are what was written`, value: { bytes } };
}

function pattern(lba: number, count: number, blockBytes: number): Uint8Array {
  const bytes = new Uint8Array(count * blockBytes);
  const words = new Uint32Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(lba * blockBytes + 4 * i, 2654435761);
  return bytes;
}

async function manage(guest: ScsiGuest, options: ScsiOptions, name: string): Promise<Answer> {
  const subtype = FUNCTIONS[name];
  if (subtype === undefined) {
    const text = `'${name}' is no function; expected is ${Object.keys(FUNCTIONS).join(', ')}`;
    throw new ConfigError('tmf', text);
  }
  const { target, lun } = parseUnitPlace(options.unit, '--unit');
  const response = await guest.manage(subtype, target, lun);
  return { text: `response ${response}`, value: { response } };
}

function diskOf(guest: ScsiGuest, options: ScsiOptions): ScsiDisk {
  const { target, lun } = parseUnitPlace(options.unit, '--unit');
  return new ScsiDisk(guest, target, lun);
}

function integer(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= low && value <= high) return value;
    throw new InvalidArgumentError(`A whole number from ${low} to ${high} is expected.`);
  };
}
