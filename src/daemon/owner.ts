/** Names of users and groups to numbers, from /etc/passwd and /etc/group. */
import { readFileSync } from 'node:fs';

export type Owner = { readonly uid: number; readonly gid: number };

/** Largest id; 0xffffffff means "leave as it is" to chown(2). */
const MAX_ID = 0xfffffffe;

/** Where accounts are read; tests give their own. */
export type AccountFiles = { readonly passwd: string; readonly group: string };
const SYSTEM_FILES: AccountFiles = { passwd: '/etc/passwd', group: '/etc/group' };

/**
 * `user:group`, `user` (with its primary group), `:group` (of this process's user), or numbers.
 * Returns the text of the problem when a name is unknown.
 */
export function resolveOwner(text: string, files: AccountFiles = SYSTEM_FILES): Owner | string {
  const [userText = '', groupText] = text.split(':');
  let uid = process.getuid?.() ?? 0;
  let primaryGid: number | null = null;
  if (userText !== '') {
    const row = account(files.passwd, userText);
    const id = row ? Number(row[2]) : numericId(userText);
    if (id === null) return unknown('user', userText, files.passwd);
    uid = id;
    primaryGid = row ? Number(row[3]) : null;
  }
  if (groupText === undefined) {
    if (primaryGid !== null) return { uid, gid: primaryGid };
    return `user ${userText} has no entry in ${files.passwd}; give uid:gid`;
  }
  const row = account(files.group, groupText);
  const gid = row ? Number(row[2]) : numericId(groupText);
  return gid === null ? unknown('group', groupText, files.group) : { uid, gid };
}

function unknown(kind: 'user' | 'group', name: string, file: string): string {
  return `no ${kind} ${JSON.stringify(name)} in ${file}; create it, or give numbers as uid:gid`;
}

/** The line of an account, by name or number, split at its colons. */
function account(file: string, wanted: string): string[] | null {
  const id = numericId(wanted);
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const fields = line.split(':');
    if (fields.length < 3) continue;
    if (id === null ? fields[0] === wanted : Number(fields[2]) === id) return fields;
  }
  return null;
}

function numericId(text: string): number | null {
  if (!/^\d{1,10}$/.test(text)) return null;
  const id = Number(text);
  return id <= MAX_ID ? id : null;
}
