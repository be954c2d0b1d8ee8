import { PlaneVring } from '../../runtime/plane-vring.ts';
import type { Flight } from './flight.ts';

/** One virtqueue whose requests take time: the ring, and the batches that are on their way. */
export abstract class FlightVring<Batch extends Flight = Flight> extends PlaneVring {
  readonly flights: Batch[] = [];
  /** Being detached: nothing more is taken. */
  draining = false;
  /** What the ring breaks with once nothing is on its way; 0 while it is sound. */
  dueFault = 0;
  readonly #free: Batch[] = [];

  /** Batches that may be on their way at once, at most 256 (flight.ts); more wait in the ring. */
  protected abstract get maxFlights(): number;

  protected abstract makeFlight(number: number): Batch;

  get busy(): number {
    return this.flights.length - this.#free.length;
  }

  /** As many batches are on their way as may be. */
  get isFull(): boolean {
    return this.#free.length === 0 && this.flights.length === this.maxFlights;
  }

  /** Room for one more batch; null: as many are on their way as may be. */
  board(): Batch | null {
    const flight = this.#free.pop();
    if (flight !== undefined) return flight;
    if (this.flights.length === this.maxFlights) return null;
    const made = this.makeFlight(this.flights.length);
    this.flights.push(made);
    return made;
  }

  land(flight: Batch): void {
    this.#free.push(flight);
  }
}
