/** `vring guest vsock ...`: the software guest's socket device, as a pipe between programs. */
import { Command, InvalidArgumentError } from 'commander';
import { pipeline } from 'node:stream/promises';
import { ConfigError } from '../base/errors.ts';
import { VsockGuest, VsockStack, type VsockStream } from '../guest/index.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { VhostVsockBackend } from '../vhost-kernel/index.ts';
import { VhostUserFrontend } from '../vhost-user/index.ts';
import { runAction } from './guest-actions.ts';
import { complain } from './output.ts';

const EXAMPLES = `
Examples:
  A program of the host listens, the guest connects; and the other way round:
    socat VSOCK-LISTEN:5000 STDOUT
    echo hello | vring guest vsock --backend vhost-vsock:42 connect 5000
    vring guest vsock --backend vhost-vsock:42 listen 5000 > received &
    socat STDIN VSOCK-CONNECT:42:5000
  Everything back to whoever sends it, until SIGTERM:
    vring guest vsock --backend vhost-vsock:42 echo 7
  Over a vhost-user socket device, which does not know the guest's context id by itself:
    vring guest vsock --backend vhost-user:/run/vsock.sock --cid 42 connect 5000

Data go from standard input and to standard output, messages to standard error; with --json a line
at the end, to standard error as well, has what was moved.
Exit status: 0 success, 1 failure, 2 wrong usage.`;

const HOST_CID = 2;
const MAX_PORT = 0xffff_fffe;

type VsockOptions = { backend: string; cid?: number; json: boolean; peer: number };
type Handler = (stack: VsockStack, port: number, options: VsockOptions) => Promise<number>;

/** Below `vring guest`. */
export function addVsockCommands(guest: Command): void {
  const vsock = guest
    .command('vsock')
    .summary('a virtio-vsock guest over vhost-vsock or vhost-user')
    .description('A virtio-vsock guest over vhost-vsock or vhost-user: a pipe to the host.')
    .requiredOption('--backend <path>', 'vhost-vsock:CID or vhost-user:SOCKET (required)')
    .option('--cid <id>', "the guest's context id, where the back-end does not say it", integer)
    .option('--json', 'print results as JSON, one object per line', false)
    .addHelpText('after', EXAMPLES);
  vsock
    .command('connect')
    .description('connect to a port of the host; standard input goes there, what comes is printed')
    .argument('<port>', 'port', integer)
    .option('--peer <cid>', 'context id of the peer', integer, HOST_CID)
    .action(action(connect));
  vsock
    .command('listen')
    .description('wait for one connection; as `connect` from then on')
    .argument('<port>', 'port', integer)
    .action(action(listen));
  vsock
    .command('echo')
    .description('send everything back, to any number of connections, until SIGTERM')
    .argument('<port>', 'port', integer)
    .action(action(echo));
}

function action(handler: Handler): (...parts: unknown[]) => Promise<void> {
  return async (...parts) => {
    const options = (parts.at(-1) as Command).optsWithGlobals<VsockOptions>();
    const run = async (): Promise<number> => {
      const backend = await openBackend(options);
      const { cid } = options;
      const guest = await VsockGuest.start(backend, cid === undefined ? {} : { cid });
      try {
        return await handler(new VsockStack({ link: guest }), parts[0] as number, options);
      } finally {
        await guest.close();
      }
    };
    process.exitCode = await runAction(run, options.json);
  };
}

async function openBackend({ backend, cid }: VsockOptions): Promise<VhostBackend> {
  const [, kind, where] = /^(vhost-vsock|vhost-user):(.+)$/.exec(backend) ?? [];
  if (kind === 'vhost-vsock' && /^\d+$/.test(where)) {
    return VhostVsockBackend.open({ cid: Number(where) });
  }
  if (kind === 'vhost-user' && cid !== undefined) {
    return VhostUserFrontend.connect(where);
  }
  const expected = 'expected vhost-vsock:CID, as vhost-vsock:42, or vhost-user:SOCKET and --cid';
  throw new ConfigError('--backend', `${backend}: ${expected}`);
}

async function connect(stack: VsockStack, port: number, options: VsockOptions): Promise<number> {
  return pipe(await stack.connect(options.peer, port), options);
}

async function listen(stack: VsockStack, port: number, options: VsockOptions): Promise<number> {
  const accepted = Promise.withResolvers<VsockStream>();
  stack.listen(port, (stream) => {
    stack.unlisten(port);
    accepted.resolve(stream);
  });
  complain(`context id ${stack.cid} listens on port ${port}`);
  return pipe(await accepted.promise, options);
}

async function echo(stack: VsockStack, port: number): Promise<number> {
  stack.listen(port, (stream) => {
    stream.on('error', (error) => complain(error.message));
    stream.pipe(stream);
  });
  complain(`context id ${stack.cid} echoes on port ${port}`);
  const ended = Promise.withResolvers<number>();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => ended.resolve(0));
  }
  return ended.promise;
}

/** Both directions, each to its end. */
async function pipe(stream: VsockStream, { json }: VsockOptions): Promise<number> {
  const moved = { sent: 0, received: 0 };
  stream.on('data', (chunk: Buffer) => (moved.received += chunk.length));
  process.stdin.on('data', (chunk: Buffer) => (moved.sent += chunk.length));
  const there = pipeline(process.stdin, stream);
  const back = pipeline(stream, process.stdout, { end: false });
  await Promise.all([there, back]);
  await stream.ended;
  if (json) process.stderr.write(`${JSON.stringify(moved)}\n`);
  return 0;
}

function integer(text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value <= MAX_PORT) return value;
  throw new InvalidArgumentError(`A whole number up to ${MAX_PORT} is expected.`);
}
