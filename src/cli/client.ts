/** Talks to the control API of a running switch. */
import { request, type IncomingMessage } from 'node:http';
import { VringError } from '../base/errors.ts';
import { DEFAULT_CONTROL_PATH } from '../daemon/switch-control.ts';

/** The switch answers from memory; who waits longer waits for a dead one. */
const TIMEOUT_MS = 10_000;
/** 256 ports of 128 queues stay below. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

/** What the switch refused, with its own code and words. */
export class ApiFailure extends VringError {
  readonly status: number;

  constructor(status: number, code: string, message: string) {
    super(code, message);
    this.status = status;
  }
}

export type ApiRequest = {
  readonly method?: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  readonly body?: unknown;
  readonly signal?: AbortSignal;
};

/** `--control`, else VRING_CONTROL, else the default. */
export function controlPath(flag: string | undefined): string {
  return flag ?? (process.env.VRING_CONTROL || DEFAULT_CONTROL_PATH);
}

export class ApiClient {
  readonly path: string;

  constructor(flag: string | undefined) {
    this.path = controlPath(flag);
  }

  /** JSON of the answer, or undefined for an empty one. Throws ApiFailure with what it says. */
  async json<T>(url: string, options: ApiRequest = {}): Promise<T> {
    const response = await this.#send(url, options);
    const text = await textOf(response);
    return (text === '' ? undefined : JSON.parse(text)) as T;
  }

  /** The body as it arrives; ends when the switch ends it. */
  stream(url: string, signal: AbortSignal): Promise<IncomingMessage> {
    return this.#send(url, { signal });
  }

  async #send(url: string, options: ApiRequest): Promise<IncomingMessage> {
    const response = await this.#request(url, options);
    const status = response.statusCode ?? 0;
    if (status >= 200 && status < 300) return response;
    const text = await textOf(response);
    try {
      const { error } = JSON.parse(text) as { error: { code: string; message: string } };
      throw new ApiFailure(status, error.code, error.message);
    } catch (thrown) {
      if (thrown instanceof ApiFailure) throw thrown;
      const message = `${this.path} answered ${status} without a reason; is it a vring switch?`;
      throw new ApiFailure(status, 'ERR_VRING_API', message);
    }
  }

  #request(url: string, { method = 'GET', body, signal }: ApiRequest): Promise<IncomingMessage> {
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const headers = payload === undefined ? {} : { 'content-type': 'application/json' };
    return new Promise((resolve, reject) => {
      const options = { socketPath: this.path, path: url, method, headers, agent: false };
      const outgoing = request(signal ? { ...options, signal } : options, (response) => {
        outgoing.setTimeout(0);
        resolve(response);
      });
      outgoing.setTimeout(TIMEOUT_MS, () => {
        const message = `${this.path} does not answer`;
        outgoing.destroy(new VringError('ERR_VRING_API_TIMEOUT', message));
      });
      outgoing.on('error', (error) => reject(this.#explained(error)));
      outgoing.end(payload);
    });
  }

  #explained(error: NodeJS.ErrnoException): Error {
    const { path } = this;
    const code = 'ERR_VRING_NO_SWITCH';
    if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') {
      const why = error.code === 'ENOENT' ? 'there is no such socket' : 'nobody listens on it';
      const message =
        `no switch runs at ${path}: ${why}\n` +
        `  start one:     vring switch --port vm0=vhost-user:/run/vring/vm0.sock\n` +
        `  or name its socket with --control PATH or VRING_CONTROL`;
      return new VringError(code, message, { cause: error });
    }
    if (error.code === 'EACCES') {
      const message =
        `you may not use ${path}: its file mode decides who may\n` +
        `  run as its owner or group, or start the switch with control.owner in its --config`;
      return new VringError(code, message, { cause: error });
    }
    if (error.code === 'ECONNRESET') {
      return new VringError(code, `the switch at ${path} went away`, { cause: error });
    }
    return error;
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let text = '';
  for await (const chunk of response) {
    text += chunk;
    if (text.length > MAX_ANSWER_BYTES) throw new VringError('ERR_VRING_API', 'endless answer');
  }
  return text;
}
