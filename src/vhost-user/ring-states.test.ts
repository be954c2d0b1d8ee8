import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nextRunState, RUN_TRANSITIONS, type RunEvent, type RunState } from './ring-states.ts';

const STATES: RunState[] = ['stopped', 'waiting', 'started'];
const EVENTS: RunEvent[] = ['start', 'wait', 'halt', 'get-base'];

test('each state and event lead to one state, or are a mistake of ours', () => {
  let legal = 0;
  for (const from of STATES) {
    for (const event of EVENTS) {
      const rows = RUN_TRANSITIONS.filter((each) => each.from === from && each.event === event);
      assert.ok(rows.length <= 1, `${from} ${event} is there twice`);
      if (rows.length === 1) {
        legal++;
        assert.equal(nextRunState(from, event), rows[0]!.to);
        assert.notEqual(rows[0]!.says, '');
      } else {
        assert.throws(() => nextRunState(from, event), new RegExp(`${from} vring cannot ${event}`));
      }
    }
  }
  assert.equal(legal, RUN_TRANSITIONS.length);
});

test('a started ring is neither started again nor made to wait: it is halted first', () => {
  const fromStarted = RUN_TRANSITIONS.filter(({ from }) => from === 'started');
  assert.deepEqual(
    fromStarted.map(({ event }) => event),
    ['halt', 'get-base'],
  );
  assert.ok(RUN_TRANSITIONS.filter(({ to }) => to === 'started').every((t) => t.event === 'start'));
});
