/**
 * Objects that back-ends offer each other by UUID, in the front-end's keeping: who has one, and
 * how it is fetched when somebody asks. One registry serves all sessions of a VMM. Section
 * "Back-end message types", SHARED_OBJECT_ADD, REMOVE and LOOKUP.
 */
import type { Fd } from '../sys/index.ts';
import { MAX_SHARED_OBJECTS } from './limits.ts';

/** Fetches an object from the back-end that has it: GET_SHARED_OBJECT. */
export interface ObjectOwner {
  getSharedObject(uuid: Uint8Array): Promise<Fd | null>;
}

export class SharedObjectRegistry {
  readonly #owners = new Map<string, ObjectOwner>();

  get size(): number {
    return this.#owners.size;
  }

  /** False: another back-end (or this one) has the UUID already, or there are too many. */
  add(uuid: Uint8Array, owner: ObjectOwner): boolean {
    const key = uuidText(uuid);
    if (this.#owners.has(key) || this.#owners.size >= MAX_SHARED_OBJECTS) return false;
    this.#owners.set(key, owner);
    return true;
  }

  /** False: it is not this owner's. Only who offered an object may take it back. */
  remove(uuid: Uint8Array, owner: ObjectOwner): boolean {
    const key = uuidText(uuid);
    return this.#owners.get(key) === owner && this.#owners.delete(key);
  }

  /** When a back-end's session ends: its objects are gone. */
  removeAll(owner: ObjectOwner): void {
    for (const [key, each] of this.#owners) if (each === owner) this.#owners.delete(key);
  }

  /**
   * The object's fd, which is the caller's; null: nobody has it. A back-end that asks for its own
   * object is told that there is none: it waits for this answer and could not hand it out.
   */
  async lookUp(uuid: Uint8Array, asker: ObjectOwner): Promise<Fd | null> {
    const owner = this.#owners.get(uuidText(uuid));
    if (owner === undefined || owner === asker) return null;
    return owner.getSharedObject(uuid);
  }
}

/** RFC 4122 text; the bytes are in that order already. */
export function uuidText(uuid: Uint8Array): string {
  const hex = Buffer.from(uuid).toString('hex');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
