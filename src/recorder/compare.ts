/** Recorded and replayed answers, field by field, and which fields may differ for a good reason. */
import { REQUEST } from '../vhost-user/index.ts';
import type { FdDescription, Json } from './recorded-event.ts';

export type Difference = {
  /** Of the recorded request. */
  readonly seq: number;
  readonly name: string;
  readonly field: string;
  readonly recorded: string;
  readonly replayed: string;
  /** Why it may differ; null: it may not. */
  readonly allowed: string | null;
};

/** What two answers are compared by. */
export type Answer = {
  readonly payload: { readonly [field: string]: Json } | null;
  readonly hex: string;
  readonly fds: readonly FdDescription[];
};

const RING_CONTENTS = 'ring contents are not replayed';
const OWN_MAPPING = 'where a back-end maps memory is its own affair';
const OWN_REGION = 'size and layout of the inflight region are the back-end’s own';

/** Fields that legitimately differ, by request. `*`: all of them. */
const MAY_DIFFER: ReadonlyMap<number, ReadonlyMap<string, string>> = new Map([
  [REQUEST.GET_VRING_BASE.id, new Map([['num', RING_CONTENTS]])],
  [REQUEST.SET_MEM_TABLE.id, new Map([['*', OWN_MAPPING]])],
  [REQUEST.ADD_MEM_REG.id, new Map([['userAddr', OWN_MAPPING]])],
  [
    REQUEST.GET_INFLIGHT_FD.id,
    new Map([
      ['mapBytes', OWN_REGION],
      ['fdOffset', OWN_REGION],
      ['padding', OWN_REGION],
    ]),
  ],
  [REQUEST.CREATE_CRYPTO_SESSION.id, new Map([['*', 'ids of sessions are the back-end’s own']])],
  [REQUEST.CHECK_DEVICE_STATE.id, new Map([['value', 'device state is not replayed']])],
  [REQUEST.SET_DEVICE_STATE_FD.id, new Map([['value', 'device state is not replayed']])],
]);

export function compareAnswers(
  request: { readonly seq: number; readonly id: number; readonly name: string },
  recorded: Answer,
  replayed: Answer,
): Difference[] {
  const { seq, id, name } = request;
  const found: Difference[] = [];
  const add = (field: string, left: string, right: string): void => {
    if (left === right) return;
    const reasons = MAY_DIFFER.get(id);
    const allowed = reasons?.get(field.replace(/^entries\[\d+\]\./, '')) ?? reasons?.get('*');
    found.push({ seq, name, field, recorded: left, replayed: right, allowed: allowed ?? null });
  };
  add('fds', String(recorded.fds.length), String(replayed.fds.length));
  if (recorded.payload === null || replayed.payload === null) {
    add('bytes', recorded.hex.slice(16), replayed.hex.slice(16));
    return found;
  }
  const [left, right] = [flatten(recorded.payload), flatten(replayed.payload)];
  for (const field of new Set([...left.keys(), ...right.keys()])) {
    add(field, left.get(field) ?? 'nothing', right.get(field) ?? 'nothing');
  }
  return found;
}

/** `{ entries: [{ a: 1 }] }` to `entries[0].a`: `1`. Names of bits say what the value says. */
function flatten(payload: { readonly [field: string]: Json }): Map<string, string> {
  const fields = new Map<string, string>();
  for (const [name, value] of Object.entries(payload)) {
    if (name === 'names' || name === 'padding') continue;
    if (name !== 'entries' || !Array.isArray(value)) {
      fields.set(name, String(value));
      continue;
    }
    for (const [i, entry] of value.entries()) {
      for (const [inner, each] of Object.entries(entry as { readonly [field: string]: Json })) {
        fields.set(`entries[${i}].${inner}`, String(each));
      }
    }
  }
  return fields;
}
