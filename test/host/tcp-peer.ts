/**
 * One end of a TCP stream, in a process of its own so that it can be in another network namespace:
 * `node tcp-peer.ts send ADDRESS PORT BYTES` and `node tcp-peer.ts receive ADDRESS PORT` print the
 * number of bytes and their SHA-256. Importing it runs the same in this process.
 */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

export async function send(address: string, port: number, bytes: Uint8Array): Promise<string> {
  let socket: Socket;
  for (let tries = 0; ; tries++) {
    socket = connect({ host: address, port });
    try {
      await once(socket, 'connect');
      break;
    } catch (error) {
      if (tries === 60) throw error; // the other end still starts
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  socket.end(bytes);
  socket.resume();
  await once(socket, 'close');
  return describe([bytes]);
}

export async function receive(address: string, port: number): Promise<string> {
  const server = createServer().listen({ host: address, port });
  const [socket] = (await once(server, 'connection')) as [Socket];
  const chunks: Uint8Array[] = [];
  for await (const chunk of socket) chunks.push(chunk as Uint8Array);
  server.close();
  return describe(chunks);
}

function describe(chunks: readonly Uint8Array[]): string {
  const hash = createHash('sha256');
  let count = 0;
  for (const chunk of chunks) {
    hash.update(chunk);
    count += chunk.length;
  }
  return `${count} ${hash.digest('hex')}`;
}

if (import.meta.main) {
  const [what, address, port, bytes] = process.argv.slice(2) as [string, string, string, string];
  const done =
    what === 'send'
      ? send(address, Number(port), randomBytes(Number(bytes)))
      : receive(address, Number(port));
  process.stdout.write(await done);
}
