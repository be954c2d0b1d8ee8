/**
 * The JSON Schema of the configuration, for editors: generated from the zod schemas and committed
 * as schema/switch.schema.json. A test holds that it is current; to renew:
 * `node src/daemon/reference-docs.ts`.
 */
import { fileURLToPath } from 'node:url';
import * as z from 'zod';
import { SwitchInput } from './port-input.ts';

export const SCHEMA_FILE = fileURLToPath(
  new URL('../../schema/switch.schema.json', import.meta.url),
);

/** What we use of JSON Schema. */
export type JsonNode = {
  type?: string | string[];
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  properties?: Record<string, JsonNode>;
  required?: string[];
  anyOf?: JsonNode[];
  oneOf?: JsonNode[];
  items?: JsonNode;
};

/** Draft 7: what the YAML language servers of editors understand best. */
export function switchJsonSchema(): Record<string, unknown> {
  const schema = z.toJSONSchema(SwitchInput, { io: 'input', target: 'draft-7' });
  return {
    $schema: schema.$schema,
    title: 'Configuration of a vring switch',
    description: 'Read by `vring switch --config FILE`.',
    ...schema,
  };
}

export function schemaText(): string {
  return `${JSON.stringify(switchJsonSchema(), null, 2)}\n`;
}
