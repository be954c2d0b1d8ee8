/** Views that are drawn anew, one over the other. */
import { pc } from './output.ts';

/** A terminal that follows: cursor hidden, each frame drawn over the last. */
const HIDE_CURSOR = '\x1b[?25l';
const SHOW_CURSOR = '\x1b[?25h';
const HOME = '\x1b[H';
const CLEAR = '\x1b[2J';
const CLEAR_LINE_END = '\x1b[K';
const CLEAR_BELOW = '\x1b[J';

/** From here on the terminal is ours, until the process ends. */
export function takeScreen(): void {
  const giveBack = () => process.stdout.write(`${SHOW_CURSOR}\n`);
  process.once('exit', giveBack);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => process.exit(0));
  }
  process.stdout.write(HIDE_CURSOR + CLEAR);
}

/** Lines that do not fit the screen are cut: a frame never scrolls. */
export function drawScreen(title: string, where: string, body: string): void {
  const height = process.stdout.rows || 24;
  const time = new Date().toLocaleTimeString('en-GB');
  const lines = [`${pc.bold(title)}  ${where}  ${time}  (Ctrl-C ends)`, ''];
  const all = [...lines, ...body.split('\n')];
  const shown = all.length < height ? all : [...all.slice(0, height - 2), '...'];
  const frame = shown.map((line) => line + CLEAR_LINE_END).join('\n');
  process.stdout.write(`${HOME}${frame}\n${CLEAR_BELOW}`);
}
