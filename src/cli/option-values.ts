/** What values of options are, for commander: it says which option was wrong. */
import { InvalidArgumentError } from 'commander';
import { ConfigError, messageOf } from '../base/errors.ts';
import { parseBytes, parseStack, type StackSpec } from '../storage/index.ts';
import type { BlkLifetime } from '../wire/virtio-blk.ts';

export function between(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`A whole number from ${least} to ${most} is expected.`);
  };
}

/** `64K` is 65536. */
export function bytes(text: string): number {
  return checked(() => parseBytes(text, 'SIZE'));
}

/** A path need not begin as such: `vm0.img`. Layers have no dots. @throws ConfigError. */
export function stackOf(parts: readonly string[], path: string): StackSpec {
  const isPath = (part: string): boolean => /^[^/.:,]+[/.][^:,]*$/.test(part);
  const texts = parts.map((part) => (isPath(part) ? `file:${part}` : part));
  return parseStack(texts, path);
}

/** Of an option that may be repeated. */
export function list(text: string, all: readonly string[] = []): string[] {
  return [...all, text];
}

/** A parser of ours, whose problem is commander's to tell. */
export function checked<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new InvalidArgumentError(messageOf(error));
  }
}

/**
 * The fields of `struct virtio_blk_lifetime`, whose ranges the device checks.
 * @throws ConfigError.
 */
export function parseLifetime(text: string): BlkLifetime {
  const words = text.split(',');
  const numbers = words.map((word) => (/^\d+$/.test(word) ? Number(word) : NaN));
  const [preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB] = numbers;
  if (words.length !== 3 || numbers.some(Number.isNaN)) {
    throw new ConfigError('--lifetime', `'${text}', expected are three numbers, such as 1,3,2`);
  }
  return {
    preEolInfo: preEolInfo!,
    deviceLifetimeEstTypA: deviceLifetimeEstTypA!,
    deviceLifetimeEstTypB: deviceLifetimeEstTypB!,
  };
}
