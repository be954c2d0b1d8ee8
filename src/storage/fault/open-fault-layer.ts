import type { Layer } from '../layer/layer.ts';
import type { FaultSpec } from '../stack/stack-spec.ts';
import { FaultLayer } from './fault-layer.ts';
import { PowerCutLayer } from './power-cut-layer.ts';

/** Rules over a cache that a power cut empties, or over what is below. @throws ConfigError. */
export function openFaultLayer(below: Layer, spec: FaultSpec): FaultLayer {
  return new FaultLayer(spec.cache === 'volatile' ? new PowerCutLayer(below) : below, spec);
}
