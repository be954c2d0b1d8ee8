/**
 * The two copies of a LUKS2 header on a device, and what is done when they disagree: the newer one
 * that is whole is right, and the other is made its equal (on-disk format 1.0.0, section 2.3).
 */
import type { Layer } from '../layer/layer.ts';
import { CryptError } from './errors.ts';
import { HEADER_SIZES } from './limits.ts';
import {
  BINARY_BYTES,
  type HeaderCopy,
  headerBytesOf,
  readCopy,
  type WhichCopy,
  writeCopy,
} from './luks2-layout.ts';

/** A header that was read. `repaired`: which copy was written anew, and what had been wrong. */
export type FoundHeader = { readonly header: HeaderCopy; readonly repaired: string | null };

type Found = { readonly copy: HeaderCopy | null; readonly problem: string };

/**
 * Repairs what is broken unless the device is read-only.
 * @throws CryptError: there is no whole copy. LayerError, SysError: it could not be read.
 */
export async function readHeader(below: Layer): Promise<FoundHeader> {
  const primary = await readAt(below, 'primary', 0);
  const sizes = primary.copy === null ? HEADER_SIZES : [primary.copy.headerBytes];
  let secondary: Found = { copy: null, problem: 'not found' };
  for (const at of sizes) {
    const found = await readAt(below, 'secondary', at);
    if (found.copy !== null || sizes.length === 1) secondary = found;
    if (found.copy !== null) break;
  }
  if (primary.copy === null && secondary.copy === null) {
    throw new CryptError(
      `${below.description} has no LUKS2 header that is whole: ` +
        `primary: ${primary.problem}; secondary: ${secondary.problem}`,
    );
  }
  const [old, header] = chooseCopy(primary, secondary);
  if (old === null) return { header, repaired: null };
  if (old === 'primary' && primary.copy === null) await refuseForeign(below, header, primary);
  const found = old === 'primary' ? primary : secondary;
  const problem = `${old} copy: ${found.copy === null ? found.problem : 'it was older'}`;
  if (below.readOnly) return { header, repaired: null };
  await writeOne(below, header, old);
  await below.flush();
  return { header, repaired: problem };
}

/** Writes both, each durable before the next: at any moment one of them is whole. */
export async function writeHeader(below: Layer, header: HeaderCopy): Promise<void> {
  for (const which of ['secondary', 'primary'] as const) {
    await writeOne(below, header, which);
    await below.flush();
  }
}

async function writeOne(below: Layer, header: HeaderCopy, which: WhichCopy): Promise<void> {
  const at = which === 'primary' ? 0 : header.headerBytes;
  await below.write(at, writeCopy(header, which), false);
}

/** What is to be written anew, if anything, and what is right. */
function chooseCopy(primary: Found, secondary: Found): [WhichCopy | null, HeaderCopy] {
  const [first, second] = [primary.copy, secondary.copy];
  if (first === null) return ['primary', second as HeaderCopy];
  if (second === null || second.seqid < first.seqid) return ['secondary', first];
  if (second.seqid > first.seqid) return ['primary', second];
  return [null, first];
}

async function readAt(below: Layer, which: WhichCopy, at: number): Promise<Found> {
  if (at + BINARY_BYTES > below.sizeBytes) return { copy: null, problem: 'the device ends first' };
  const binary = new Uint8Array(BINARY_BYTES);
  await below.read(at, binary);
  const headerBytes = headerBytesOf(binary, which, at);
  if (typeof headerBytes === 'string') return { copy: null, problem: headerBytes };
  if (which === 'secondary' && headerBytes !== at) {
    return { copy: null, problem: `its size ${headerBytes} is not where it is` };
  }
  if (at + headerBytes > below.sizeBytes) return { copy: null, problem: 'it is cut off' };
  const bytes = new Uint8Array(headerBytes);
  await below.read(at, bytes);
  const copy = readCopy(bytes);
  return typeof copy === 'string' ? { copy: null, problem: copy } : { copy, problem: '' };
}

/**
 * A first sector that is neither LUKS nor empty belongs to somebody else: a file system was made
 * over the header, whose second copy survived it. It is not ours to overwrite.
 */
async function refuseForeign(below: Layer, header: HeaderCopy, primary: Found): Promise<void> {
  const start = new Uint8Array(BINARY_BYTES);
  await below.read(0, start);
  const isLuks = start[0] === 0x4c && start[1] === 0x55 && start[2] === 0x4b && start[3] === 0x53;
  if (isLuks || start.every((byte) => byte === 0)) return;
  throw new CryptError(
    `${below.description} begins with something that is not LUKS (${primary.problem}), though ` +
      `a second copy of a header is at ${header.headerBytes}; if it is right: cryptsetup repair`,
  );
}
