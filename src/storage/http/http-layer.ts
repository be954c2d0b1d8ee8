/** An object on an HTTP server, S3 among them, as the read-only bottom of a stack. */
import { ConfigError, messageOf } from '../../base/errors.ts';
import { EIO, EROFS } from '../../sys/index.ts';
import { LayerError } from '../layer/layer.ts';
import { SourceLayer } from '../layer/source-layer.ts';
import type { CacheSpec, HttpSpec, S3Spec } from '../stack/stack-spec.ts';
import { type BlockStore, MemoryBlockStore } from './block-store.ts';
import { CachedReader } from './cached-reader.ts';
import { FileBlockStore } from './file-block-store.ts';
import { HttpError } from './http-error.ts';
import { HttpObject } from './http-object.ts';
import { locateS3, type S3Location } from './s3-location.ts';

const SECTOR_BYTES = 512;
const DEFAULT_TIMEOUT_SECONDS = 30;
const DEFAULT_CACHE: CacheSpec = { sizeBytes: 32 * 2 ** 20 };
const DEFAULT_BLOCK_BYTES = 256 * 1024;
const MIN_BLOCK_BYTES = 64 * 1024;
const MAX_BLOCK_BYTES = 2 ** 20;
/** Slots of a cache: their table is in memory. */
const MAX_BLOCKS = 2 ** 22;

export type HttpLayerOptions = {
  /** Certificates to trust in place of the system's; NODE_EXTRA_CA_CERTS adds to those. */
  readonly ca?: string | Buffer;
};

/** @throws HttpError: not there, no ranges, no disk. ConfigError: URL, cache, credentials. */
export async function openHttpLayer(
  spec: HttpSpec | S3Spec,
  options: HttpLayerOptions = {},
): Promise<HttpLayer> {
  const { url, sign } = spec.kind === 's3' ? locateS3(spec) : locateHttp(spec.url);
  const cache = checkCache(spec.cache ?? DEFAULT_CACHE);
  const timeoutMs = 1000 * (spec.timeoutSeconds ?? DEFAULT_TIMEOUT_SECONDS);
  const object = await HttpObject.open({ url, sign, timeoutMs, ...options });
  try {
    const { totalBytes } = object.version;
    if (totalBytes % SECTOR_BYTES !== 0) {
      const text = `${object.description} has ${totalBytes} bytes; a disk has whole sectors of 512`;
      throw new HttpError('ERR_VRING_HTTP_OBJECT', text);
    }
    return new HttpLayer(object, cache.blockBytes, await openStore(cache, object));
  } catch (error) {
    object.close();
    throw error;
  }
}

export class HttpLayer extends SourceLayer {
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly = true;
  readonly #object: HttpObject;
  readonly #store: BlockStore;
  readonly #reader: CachedReader;
  #closing: Promise<void> | null = null;

  /** Use `openHttpLayer`. */
  constructor(object: HttpObject, blockBytes: number, store: BlockStore) {
    super();
    const { totalBytes } = object.version;
    this.description = object.description;
    this.sizeBytes = totalBytes;
    this.#object = object;
    this.#store = store;
    const fetch = (at: number, sizeBytes: number): Promise<Buffer> => object.fetch(at, sizeBytes);
    this.#reader = new CachedReader({ totalBytes, blockBytes, store, fetch });
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    try {
      await this.#reader.read(at, into);
    } catch (cause) {
      const errno = cause instanceof LayerError ? cause.errno : EIO;
      const text = `${this.description}: read at byte ${at}: ${messageOf(cause)}`;
      throw new LayerError(errno, text, { cause });
    }
  }

  write(at: number): Promise<void> {
    return this.#refuse('write', at);
  }

  discard(at: number): Promise<void> {
    return this.#refuse('discard', at);
  }

  zero(at: number): Promise<void> {
    return this.#refuse('zero', at);
  }

  async flush(): Promise<void> {}

  override counters(): Record<string, number> {
    const { hits, misses, fetchedBytes, readAheads } = this.#reader;
    const { requests, retries } = this.#object;
    return {
      httpRequests: requests,
      httpRetries: retries,
      httpFetchedBytes: fetchedBytes,
      httpReadAheads: readAheads,
      cacheHits: hits,
      cacheMisses: misses,
      cacheBlocks: this.#store.count,
      cacheFailures: this.#store.failures,
    };
  }

  override close(): Promise<void> {
    this.#object.close(); // ends reads ahead, too
    this.#closing ??= this.#reader.close();
    return this.#closing;
  }

  async #refuse(op: string, at: number): Promise<void> {
    throw new LayerError(EROFS, `${this.description}: ${op} at byte ${at}: it is read-only`);
  }
}

function locateHttp(text: string): S3Location {
  const url = URL.parse(text);
  if (url !== null && /^https?:$/.test(url.protocol)) return { url, sign: null };
  throw new ConfigError('http', `'${text}', expected is http://... or https://...`);
}

type CheckedCache = CacheSpec & { readonly blockBytes: number };

function checkCache(cache: CacheSpec): CheckedCache {
  const { sizeBytes, blockBytes = DEFAULT_BLOCK_BYTES } = cache;
  const isPower = Number.isInteger(Math.log2(blockBytes));
  if (!isPower || blockBytes < MIN_BLOCK_BYTES || blockBytes > MAX_BLOCK_BYTES) {
    const text = `${blockBytes}, expected is a power of two from 64 KiB to 1 MiB`;
    throw new ConfigError('cache.blockBytes', text);
  }
  if (sizeBytes >= blockBytes && sizeBytes / blockBytes <= MAX_BLOCKS) {
    return { ...cache, blockBytes };
  }
  const text = `${sizeBytes}, expected are 1 to ${MAX_BLOCKS} blocks of ${blockBytes} bytes`;
  throw new ConfigError('cache.sizeBytes', text);
}

async function openStore(cache: CheckedCache, object: HttpObject): Promise<BlockStore> {
  const { path, blockBytes } = cache;
  const { totalBytes, etag } = object.version;
  const capacity = Math.floor(cache.sizeBytes / blockBytes);
  if (path === undefined) return new MemoryBlockStore(capacity);
  // A weak tag, or a date, may stay the same when bytes change.
  const identity = object.isStrong ? `${object.href}\n${etag}\n${totalBytes}` : null;
  return FileBlockStore.open({ path, blockBytes, capacity, identity, totalBytes });
}
