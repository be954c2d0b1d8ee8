/** `vring events`: what happened, and with `--follow` what happens. */
import { createInterface } from 'node:readline';
import type { SwitchEvent } from '../daemon/switch-types.ts';
import { ApiClient } from './client.ts';
import { complain, print, printable, printJson, UsageError } from './output.ts';
import type { ClientOptions } from './port-commands.ts';

export type EventOptions = ClientOptions & { readonly follow?: boolean; readonly last?: string };

export async function showEvents(options: EventOptions): Promise<void> {
  const last = options.last ?? (options.follow ? '10' : undefined);
  if (last !== undefined && !(/^\d{1,4}$/.test(last) && Number(last) <= 1000)) {
    throw new UsageError(`--last: "${last}" is not a whole number from 0 to 1000`);
  }
  const client = new ApiClient(options.control);
  const query = last === undefined ? '' : `last=${last}`;
  if (!options.follow) {
    const events = await client.json<SwitchEvent[]>(`/v1/events?${query}`);
    if (options.json) printJson(events);
    else for (const event of events) print(eventLine(event));
    return;
  }
  const stream = await client.stream(`/v1/events?follow=1&${query}`, new AbortController().signal);
  try {
    for await (const line of createInterface({ input: stream })) {
      if (options.json) print(line);
      else print(eventLine(JSON.parse(line) as SwitchEvent));
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ECONNRESET') throw error;
  }
  complain('the switch ended');
}

function eventLine({ at, kind, port, disk, message }: SwitchEvent): string {
  const about = port ?? (disk === undefined ? null : `disk ${disk}`);
  return printable(`${at} ${about === null ? '' : `${about}: `}${kind}: ${message}`);
}
