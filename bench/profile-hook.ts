/**
 * Loaded into `vring switch` by `--import`: profiles every worker thread from its start, and on
 * SIGUSR2 writes `worker-N.cpuprofile` into the folder that VRING_PROFILE names.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isMainThread, type Worker } from 'node:worker_threads';

type Profiled = Worker & { startCpuProfile(): Promise<{ stop(): Promise<string> }> };

const folder = process.env['VRING_PROFILE'];

if (isMainThread && folder !== undefined) {
  process.on('worker', (worker) => {
    worker.once('online', () => {
      const started = (worker as Profiled).startCpuProfile();
      process.once('SIGUSR2', () => {
        void started
          .then((profile) => profile.stop())
          .then((text) => {
            writeFileSync(join(folder, `worker-${worker.threadId}.cpuprofile`), text);
          });
      });
    });
  });
}
