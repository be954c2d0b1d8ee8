/**
 * Signature version 4 of AWS, as S3 and what speaks like it take it ("Authenticating Requests:
 * Using the Authorization Header"), for requests without a body.
 */
import { createHash, createHmac } from 'node:crypto';

const ALGORITHM = 'AWS4-HMAC-SHA256';
/** SHA-256 of nothing. */
export const EMPTY_BODY_SHA256 = createHash('sha256').digest('hex');

export type Credentials = {
  readonly accessKey: string;
  readonly secretKey: string;
  readonly sessionToken?: string;
};

export type SigningScope = { readonly region: string; readonly service: string };

export type Signable = {
  readonly method: string;
  /** Its path is encoded already, and signed as it stands. */
  readonly url: URL;
  /** All are signed, `host` beside. */
  readonly headers: Readonly<Record<string, string>>;
};

/** The value of the Authorization header; `amzDate` is the value of x-amz-date. */
export function authorizationV4(
  { method, url, headers }: Signable,
  { region, service }: SigningScope,
  { accessKey, secretKey }: Credentials,
  amzDate: string,
  bodySha256 = EMPTY_BODY_SHA256,
): string {
  const all = Object.entries({ ...headers, host: url.host })
    .map(([name, value]) => [name.toLowerCase(), value.trim().replace(/ +/g, ' ')] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  const signedHeaders = all.map(([name]) => name).join(';');
  const canonical = [
    method,
    url.pathname,
    canonicalQuery(url),
    ...all.map(([name, value]) => `${name}:${value}`),
    '',
    signedHeaders,
    bodySha256,
  ].join('\n');
  const day = amzDate.slice(0, 8);
  const scope = `${day}/${region}/${service}/aws4_request`;
  const text = [ALGORITHM, amzDate, scope, sha256(canonical)].join('\n');
  let key: Buffer = Buffer.from(`AWS4${secretKey}`);
  for (const part of [day, region, service, 'aws4_request', text]) {
    key = createHmac('sha256', key).update(part).digest();
  }
  const signature = key.toString('hex');
  return (
    `${ALGORITHM} Credential=${accessKey}/${scope}, SignedHeaders=${signedHeaders}, ` +
    `Signature=${signature}`
  );
}

/** `20130524T000000Z` */
export function amzDateOf(date: Date): string {
  return date.toISOString().replace(/[-:]|\.\d+/g, '');
}

/** "UriEncode": all but the unreserved characters of RFC 3986, of which there are few. */
export function uriEncode(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function canonicalQuery(url: URL): string {
  return [...url.searchParams]
    .map(([name, value]) => `${uriEncode(name)}=${uriEncode(value)}`)
    .sort()
    .join('&');
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
