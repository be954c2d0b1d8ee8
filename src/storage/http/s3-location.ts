/** Where an object of S3, or of what speaks like it, is; and who signs requests for it. */
import { readFileSync } from 'node:fs';
import { ConfigError, messageOf } from '../../base/errors.ts';
import type { S3Spec } from '../stack/stack-spec.ts';
import {
  amzDateOf,
  authorizationV4,
  type Credentials,
  EMPTY_BODY_SHA256,
  uriEncode,
} from './sigv4.ts';

/** Adds what proves who we are to the headers of a GET. */
export type Signer = (url: URL, headers: Record<string, string>) => Record<string, string>;

export type S3Location = { readonly url: URL; readonly sign: Signer | null };

/** @throws ConfigError: endpoint, bucket, key or credentials. */
export function locateS3(spec: S3Spec, environment = process.env): S3Location {
  const credentials = findCredentials(spec.credentialsFile, environment);
  const url = urlOf(spec);
  if (credentials === null) return { url, sign: null };
  const scope = { region: spec.region, service: 's3' };
  const sign: Signer = (url, headers) => {
    const amzDate = amzDateOf(new Date());
    const { sessionToken } = credentials;
    const all: Record<string, string> = {
      ...headers,
      'x-amz-content-sha256': EMPTY_BODY_SHA256,
      'x-amz-date': amzDate,
      ...(sessionToken === undefined ? {} : { 'x-amz-security-token': sessionToken }),
    };
    const request = { method: 'GET', url, headers: all };
    return { ...all, authorization: authorizationV4(request, scope, credentials, amzDate) };
  };
  return { url, sign };
}

function urlOf({ endpoint, bucket, key, addressing = 'path' }: S3Spec): URL {
  const base = URL.parse(endpoint);
  if (base === null || !/^https?:$/.test(base.protocol) || base.search !== '') {
    throw new ConfigError(
      's3.endpoint',
      `'${endpoint}', expected is such as https://s3.example.org`,
    );
  }
  if (base.username !== '' || base.password !== '') {
    throw new ConfigError(
      's3.endpoint',
      'has a user; keys are read from a file or the environment',
    );
  }
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) {
    throw new ConfigError('s3.bucket', `'${bucket}' is no name of a bucket`);
  }
  const parts = key.split('/');
  if (key === '' || parts.includes('.') || parts.includes('..')) {
    // URLs know what such a part means, and S3 does not: the wrong object would be asked for.
    throw new ConfigError('s3.key', `'${key}' is empty or has a part that is . or ..`);
  }
  const isPath = addressing === 'path';
  const folder = base.pathname.replace(/\/$/, '');
  const path = [...(isPath ? [bucket] : []), ...parts].map(uriEncode).join('/');
  const host = isPath ? base.host : `${bucket}.${base.host}`;
  return new URL(`${base.protocol}//${host}${folder}/${path}`);
}

/** Null: unsigned, for objects that everybody may read. */
function findCredentials(
  file: string | undefined,
  environment: NodeJS.ProcessEnv,
): Credentials | null {
  if (file !== undefined) return readCredentials(file);
  const accessKey = environment['AWS_ACCESS_KEY_ID'];
  const secretKey = environment['AWS_SECRET_ACCESS_KEY'];
  if (!accessKey && !secretKey) return null;
  if (!accessKey || !secretKey) {
    const text = 'one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set; set both, or none';
    throw new ConfigError('s3', text);
  }
  const sessionToken = environment['AWS_SESSION_TOKEN'];
  return { accessKey, secretKey, ...(sessionToken ? { sessionToken } : {}) };
}

function readCredentials(file: string): Credentials {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new ConfigError('s3.credentialsFile', messageOf(cause), { cause });
  }
  const lines = text.split('\n').map((line) => line.trim());
  const [accessKey = '', secretKey = '', sessionToken = ''] = lines;
  const isSound = [accessKey, secretKey].every((word) => /^[\x21-\x7e]+$/.test(word));
  if (!isSound || !/^[\x21-\x7e]*$/.test(sessionToken)) {
    const text = `${file}: expected are two lines, access key and secret, or three with a token`;
    throw new ConfigError('s3.credentialsFile', text);
  }
  return { accessKey, secretKey, ...(sessionToken === '' ? {} : { sessionToken }) };
}
