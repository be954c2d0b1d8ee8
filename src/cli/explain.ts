/** What a failed system call on a path means for the one who gave the path, and what helps. */
import { messageOf, SysError } from '../base/errors.ts';

type Explanations = Readonly<Record<string, string>>;

const CONNECT: Explanations = {
  ENOENT: 'there is no such socket; start what listens there, or give another path',
  ECONNREFUSED: 'nobody listens on this socket any more; start what does, or give another path',
  EACCES: 'you may not connect; the modes of the socket and of its folders decide who may',
};

const BIND: Explanations = {
  ENOENT: 'the folder of this socket does not exist; make it first, or give another path',
  EACCES: 'you may not make a socket there; the mode of its folder decides who may',
};

const FILE: Explanations = {
  ENOENT: 'there is no such file or folder',
  EACCES: 'its mode, or that of a folder, does not let you',
  EISDIR: 'it is a folder, and a file is expected',
  ENOTDIR: 'a part of the path is no folder',
};

/** The message of an error; where a path was wrong, in words instead of an errno. */
export function explain(thrown: unknown): string {
  if (!(thrown instanceof SysError)) return messageOf(thrown);
  const text = { connect: CONNECT, bind: BIND }[thrown.syscall]?.[thrown.errnoName];
  if (text === undefined) return thrown.message;
  const path = thrown.message.slice(thrown.message.indexOf(': ') + 2);
  return `${path}: ${text}`;
}

/** Why a file could not be opened, without its name. */
export function fileProblem(cause: unknown): string {
  return FILE[(cause as NodeJS.ErrnoException).code ?? ''] ?? messageOf(cause);
}
