/**
 * An object behind a URL as bytes to be fetched: one version of it, pinned by its ETag, so that
 * what is read is never a mixture. Failures that may pass are tried again until the time is over.
 */
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { EIO } from '../../sys/index.ts';
import { LayerError } from '../layer/layer.ts';
import { Slots } from '../slots.ts';
import { HttpError } from './http-error.ts';
import {
  type Agents,
  createAgents,
  type RangeReply,
  requestRange,
  shownUrl,
} from './range-request.ts';
import type { Signer } from './s3-location.ts';

const { ETIMEDOUT } = constants.errno;
/** Requests at once, and connections. */
const MAX_PARALLEL = 8;
/** Opening is tried for so long, or for the time of a request: a server may just be restarting. */
const OPEN_MS = 10_000;
const FIRST_PAUSE_MS = 50;
const LAST_PAUSE_MS = 3000;

export type HttpObjectOptions = {
  readonly url: URL;
  readonly sign: Signer | null;
  readonly timeoutMs: number;
  /** Certificates to trust in place of the system's. */
  readonly ca?: string | Buffer;
};

type Version = Omit<RangeReply, 'bytes'>;

export class HttpObject {
  /** Without what may be secret. */
  readonly description: string;
  readonly version: Version;
  requests = 0;
  retries = 0;
  readonly #options: HttpObjectOptions;
  readonly #agents: Agents;
  readonly #slots = new Slots(MAX_PARALLEL);
  readonly #pin: Readonly<Record<string, string>>;
  /** The object was replaced: for good, until it is opened anew. */
  #changed: HttpError | null = null;
  #isClosed = false;

  /**
   * One sector tells all: that it is there, has ranges, how large it is, which version. (busybox
   * httpd takes a range of one byte for one without an end.) What may pass is tried again.
   * @throws HttpError: of the last attempt.
   */
  static async open(options: HttpObjectOptions): Promise<HttpObject> {
    const { url, sign, timeoutMs } = options;
    const agents = createAgents(MAX_PARALLEL, options.ca);
    const first = { url, sign, agents, at: 0, sizeBytes: 512, headers: {} };
    const deadlineMs = performance.now() + Math.min(timeoutMs, OPEN_MS);
    const left = (): number => deadlineMs - performance.now();
    try {
      for (let pauseMs = 0; ; await sleep(pauseMs)) {
        try {
          return new HttpObject(
            options,
            agents,
            await requestRange({ ...first, timeoutMs: left() }),
          );
        } catch (error) {
          if (!(error instanceof HttpError) || error.recovery !== 'retry') throw error;
          pauseMs = nextPause(pauseMs);
          if (left() <= pauseMs) throw error;
        }
      }
    } catch (error) {
      closeAgents(agents);
      throw error;
    }
  }

  private constructor(options: HttpObjectOptions, agents: Agents, first: RangeReply) {
    const { totalBytes, etag, lastModified } = first;
    this.description = shownUrl(options.url);
    this.version = { totalBytes, etag, lastModified };
    this.#options = options;
    this.#agents = agents;
    if (etag === null && lastModified === null) {
      const text =
        `${this.description} has neither ETag nor Last-Modified: whether it is replaced while ` +
        'it is read could not be told';
      throw new HttpError('ERR_VRING_HTTP_OBJECT', text);
    }
    // RFC 9110, 13.1.1: If-Match compares strongly; a weak tag never matches.
    if (this.isStrong) this.#pin = { 'if-match': etag! };
    else if (lastModified === null) this.#pin = {};
    else this.#pin = { 'if-unmodified-since': lastModified };
  }

  /** Its tag stands for its bytes, also tomorrow. */
  get isStrong(): boolean {
    const { etag } = this.version;
    return etag !== null && !etag.startsWith('W/');
  }

  /**
   * @throws LayerError ETIMEDOUT, or EIO with the HttpError as its cause.
   */
  async fetch(at: number, sizeBytes: number): Promise<Buffer> {
    const deadlineMs = performance.now() + this.#options.timeoutMs;
    const release = await this.#slots.acquire();
    try {
      return await this.#fetchUntil(at, sizeBytes, deadlineMs);
    } finally {
      release();
    }
  }

  /** What tells it from other objects; may hold secrets. */
  get href(): string {
    return this.#options.url.href;
  }

  /** Idempotent. What is under way fails. */
  close(): void {
    this.#isClosed = true;
    closeAgents(this.#agents);
  }

  async #fetchUntil(at: number, sizeBytes: number, deadlineMs: number): Promise<Buffer> {
    let last: HttpError | null = null;
    for (let pauseMs = 0; ;) {
      if (this.#isClosed) throw new LayerError(EIO, `byte ${at}: the disk is closed`);
      if (this.#changed !== null) throw this.#failed(EIO, at, this.#changed);
      const timeoutMs = deadlineMs - performance.now();
      if (timeoutMs <= pauseMs) throw this.#failed(ETIMEDOUT, at, last);
      await sleep(pauseMs);
      try {
        const { url, sign } = this.#options;
        const what = { url, sign, at, sizeBytes, headers: this.#pin, agents: this.#agents };
        this.requests++;
        const reply = await requestRange({ ...what, timeoutMs: timeoutMs - pauseMs });
        this.#checkVersion(reply);
        return reply.bytes;
      } catch (error) {
        if (!(error instanceof HttpError)) throw error;
        if (error.code === 'ERR_VRING_HTTP_CHANGED') this.#changed = error;
        if (error.recovery !== 'retry') throw this.#failed(EIO, at, error);
        last = error;
        this.retries++;
        pauseMs = nextPause(pauseMs);
      }
    }
  }

  /** Some servers do not look at If-Match. */
  #checkVersion({ totalBytes, etag, lastModified }: RangeReply): void {
    const was = this.version;
    const isSame =
      totalBytes === was.totalBytes &&
      etag === was.etag &&
      (etag !== null || lastModified === was.lastModified);
    if (isSame) return;
    const [before, now] = [was.etag ?? was.lastModified, etag ?? lastModified];
    const text = `${this.description} has changed: ${before} is now ${now}`;
    throw new HttpError('ERR_VRING_HTTP_CHANGED', text);
  }

  #failed(errno: number, at: number, cause: HttpError | null): LayerError {
    const advice =
      cause?.code === 'ERR_VRING_HTTP_CHANGED' ? '; open the disk anew to read what it is now' : '';
    const why = cause === null ? 'no time was left' : cause.message;
    const late = errno === ETIMEDOUT ? `nothing within ${this.#options.timeoutMs / 1000} s: ` : '';
    return new LayerError(errno, `byte ${at}: ${late}${why}${advice}`, { cause });
  }
}

/** Half at random: many disks of one server do not come back in step. */
function nextPause(pauseMs: number): number {
  const most = pauseMs === 0 ? FIRST_PAUSE_MS : Math.min(LAST_PAUSE_MS, 3 * pauseMs);
  return most / 2 + (Math.random() * most) / 2;
}

function closeAgents({ http, https }: Agents): void {
  http.destroy();
  https.destroy();
}
