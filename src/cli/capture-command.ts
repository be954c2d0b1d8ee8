/** `vring capture PORT`: pcapng to a file or to standard output, for Wireshark and tcpdump. */
import { createWriteStream } from 'node:fs';
import type { Writable } from 'node:stream';
import { once } from 'node:events';
import { VringError } from '../base/errors.ts';
import { ApiClient } from './client.ts';
import { complain, printJson, UsageError } from './output.ts';
import { PcapngCutter } from './pcapng-cutter.ts';
import type { ClientOptions } from './port-commands.ts';

export type CaptureOptions = ClientOptions & {
  readonly write: string;
  readonly snaplen?: string;
  readonly count?: string;
  readonly seconds?: string;
};

export async function capture(port: string, options: CaptureOptions): Promise<void> {
  const count = limit('--count', options.count, 1, Number.MAX_SAFE_INTEGER);
  const seconds = limit('--seconds', options.seconds, 0, 31536000);
  const snapLen = limit('--snaplen', options.snaplen, 14, 262144);
  const isStdout = options.write === '-';
  if (isStdout && process.stdout.isTTY) {
    throw new UsageError(
      'a capture is binary and standard output is a terminal; write it with -w FILE,\n' +
        `  or pipe it: vring capture ${port} | tcpdump -n -r -`,
    );
  }
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());

  const query = snapLen === undefined ? '' : `?snapLen=${snapLen}`;
  const url = `/v1/ports/${encodeURIComponent(port)}/capture${query}`;
  const stream = await new ApiClient(options.control).stream(url, stop.signal);
  const timer = seconds === undefined ? null : setTimeout(() => stop.abort(), seconds * 1000);
  const out: Writable = isStdout ? process.stdout : await openFile(options.write);

  const cutter = new PcapngCutter(count);
  let bytes = 0;
  try {
    for await (const chunk of stream) {
      const blocks = cutter.push(chunk as Buffer);
      bytes += blocks.length;
      if (blocks.length > 0 && !out.write(blocks))
        await once(out, 'drain', { signal: stop.signal });
      if (cutter.done) break;
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const isEnd = stop.signal.aborted || code === 'ECONNRESET';
    if (!isEnd) throw error;
  } finally {
    if (timer) clearTimeout(timer);
    stream.destroy();
  }
  if (!isStdout) {
    out.end();
    await once(out, 'finish');
  }
  const frames = cutter.frames;
  if (options.json && !isStdout) printJson({ file: options.write, frames, bytes });
  else complain(`${frames} frames, ${bytes} bytes${isStdout ? '' : ` in ${options.write}`}`);
}

function limit(
  flag: string,
  text: string | undefined,
  min: number,
  max: number,
): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  const isWhole = flag === '--seconds' || Number.isInteger(value);
  if (text !== '' && isWhole && value >= min && value <= max) return value;
  throw new UsageError(`${flag}: "${text}" is not a number from ${min} to ${max}`);
}

async function openFile(path: string): Promise<Writable> {
  const file = createWriteStream(path, { mode: 0o600 });
  try {
    await once(file, 'open');
  } catch (cause) {
    throw new VringError('ERR_VRING_CAPTURE_FILE', `cannot write ${path}: ${String(cause)}`, {
      cause,
    });
  }
  return file;
}
