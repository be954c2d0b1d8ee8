/** For uring-engine.test.ts: a write below the limit on the size of files, and one above it. */
import { PrivateMemory } from '../../memory/index.ts';
import { IO_WRITE, IoBatch, IoDone, openEngine, openFileImage } from '../index.ts';

const [path, by] = process.argv.slice(2) as [string, string];
const image = openFileImage({ path, uring: by === 'io_uring' ? 'on' : 'off', direct: 'off' });
const engine = openEngine(image.spec);
const memory = PrivateMemory.allocate(4096);
const statuses = [0, 16384].map((at) => {
  const batch = new IoBatch();
  batch.add(IO_WRITE, at, 4096, [[memory.offset, 4096]]);
  engine.submit(batch, 0);
  engine.settle();
  const done = new IoDone();
  engine.reap(done);
  return done.status[0]!;
});
console.log(statuses.join(' '));
engine.close();
image.close();
memory.close();
