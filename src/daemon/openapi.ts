/** /openapi.json, from the table of routes. OpenAPI 3.1 speaks JSON Schema 2020-12 itself. */
import * as z from 'zod';
import type { Answer, Route } from './api-route.ts';
import { ROUTES } from './api-routes.ts';
import { ErrorSchema } from './api-schemas.ts';

type Json = Record<string, unknown>;

const ERRORS: Readonly<Record<number, string>> = {
  400: 'The request is wrong; `error.path` says where.',
  404: 'There is no such port, disk or adapter.',
  409: 'Taken, busy or not there: a name, a socket, an interface, a capture, an image.',
  500: 'The switch or the kernel failed.',
  503: 'The switch starts or ends, or too many streams are open.',
};

/** Schemas with an id become components; everything else stays where it is used. */
class Components {
  readonly schemas: Json = {};

  jsonOf(schema: z.ZodType, io: 'input' | 'output'): Json {
    const {
      $schema: _,
      $defs,
      ...rest
    } = z.toJSONSchema(schema, {
      io,
      target: 'draft-2020-12',
    }) as Json;
    for (const [id, def] of Object.entries(($defs ?? {}) as Json)) this.schemas[id] = moved(def);
    if (typeof rest.id === 'string') {
      const { id, ...named } = rest;
      this.schemas[id] = moved(named);
      return { $ref: `#/components/schemas/${id}` };
    }
    return moved(rest) as Json;
  }
}

/** References to `#/$defs/X` point to the components instead; the ids are implied. */
function moved(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(moved);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).map(([key, inner]) => {
    if (key !== '$ref' || typeof inner !== 'string') return [key, moved(inner)];
    return [key, inner.replace('#/$defs/', '#/components/schemas/')];
  });
  const { id: _, ...rest } = Object.fromEntries(entries) as Json;
  return typeof _ === 'string' ? rest : Object.fromEntries(entries);
}

function answerOf(answer: Answer, components: Components): Json {
  if (answer.type) {
    const schema = { type: 'string' };
    return { description: answer.description, content: { [answer.type]: { schema } } };
  }
  if (!answer.schema) return { description: answer.description };
  const schema = components.jsonOf(answer.schema, 'output');
  return { description: answer.description, content: { 'application/json': { schema } } };
}

function parametersOf(route: Route, components: Components): Json[] {
  const parameters: Json[] = [];
  for (const [, name] of route.path.matchAll(/\{(\w+)\}/g)) {
    parameters.push({ name, in: 'path', required: true, schema: { type: 'string' } });
  }
  const query = route.query ? components.jsonOf(route.query, 'input') : {};
  for (const [name, field] of Object.entries((query.properties ?? {}) as Record<string, Json>)) {
    const { description, ...schema } = field;
    parameters.push({ name, in: 'query', ...(description ? { description } : {}), schema });
  }
  return parameters;
}

function operationOf(route: Route, components: Components): Json {
  const responses: Json = {};
  for (const [status, answer] of Object.entries(route.answers)) {
    responses[status] = answerOf(answer, components);
  }
  const error = components.jsonOf(ErrorSchema, 'output');
  for (const status of [400, ...(route.errors ?? []), 500]) {
    const content = { 'application/json': { schema: error } };
    responses[status] = { description: ERRORS[status], content };
  }
  const operation: Json = {
    operationId: route.id,
    summary: route.summary,
    parameters: parametersOf(route, components),
    responses,
  };
  if (route.socketOnly) operation.description = 'On the Unix socket only.';
  if (route.body) {
    const schema = components.jsonOf(route.body, 'input');
    operation.requestBody = { required: true, content: { 'application/json': { schema } } };
  }
  return operation;
}

export function openApiDocument(version: string): Json {
  const components = new Components();
  const paths: Record<string, Json> = {};
  for (const route of ROUTES) {
    (paths[route.path] ??= {})[route.method.toLowerCase()] = operationOf(route, components);
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'vring switch',
      version,
      description: 'Control API of a vring switch, over HTTP on a Unix socket.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: 'http://localhost', description: 'The Unix socket, or --http.' }],
    paths,
    components: { schemas: components.schemas },
  };
}
