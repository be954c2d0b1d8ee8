import { COUNTER_NAMES, type CounterName, DROP_NOT_READY, DROP_SHORT } from '../switch/index.ts';

/**
 * A port's counters under the names that people see: what the switch counts of it, and what its
 * data half counts. Drops say which way the frame was going: `rxDrop...` came from the port,
 * `txDrop...` was meant for it.
 */
export function portCounters(
  counted: Readonly<Record<CounterName, number>>,
  plane: Readonly<Record<string, number>>,
): Record<string, number> {
  const counters: Record<string, number> = {};
  for (const [column, name] of COUNTER_NAMES.entries()) {
    if (name === 'dropReceiver') continue; // the data half says the same by reason
    counters[publicName(name, column)] = counted[name];
  }
  return { ...counters, ...plane };
}

function publicName(name: string, column: number): string {
  if (column < DROP_SHORT) return name;
  const direction = column < DROP_NOT_READY ? 'rx' : 'tx';
  return direction + name.charAt(0).toUpperCase() + name.slice(1);
}
