/**
 * Which vhost-user messages a switch of its own process heard and said: `MESSAGE_LOG.nodeArgs` and
 * `environment` go into `SwitchProcess.start`, and the switch writes their names into a file.
 */
import { subscribe } from 'node:diagnostics_channel';
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import type { MessageEvent } from '../../src/vhost-user/diagnostics.ts';

const VARIABLE = 'VRING_TEST_MESSAGE_LOG';

export class MessageLog {
  readonly nodeArgs = ['--import', import.meta.url];
  readonly environment: Readonly<Record<string, string>>;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    this.environment = { [VARIABLE]: path };
  }

  /** Lines `received VHOST_USER_SET_LOG_BASE`, in their order. */
  lines(): string[] {
    if (!existsSync(this.#path)) return [];
    return readFileSync(this.#path, 'utf8').trimEnd().split('\n');
  }

  /** How often the switch received this message. */
  received(name: string): number {
    return this.lines().filter((line) => line === `received VHOST_USER_${name}`).length;
  }
}

const path = process.env[VARIABLE];
if (path !== undefined && isMainThread) {
  subscribe('vring:vhost-user:message', (message) => {
    const { direction, name } = message as MessageEvent;
    appendFileSync(path, `${direction} ${name}\n`);
  });
}
