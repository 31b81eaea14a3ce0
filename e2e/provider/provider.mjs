// An OpenID provider for tests and for one developer: real flows, made-up people, no password. It owns no data: all is in memory.
// `node provider.mjs PORT` (0 picks a port) listens on 127.0.0.1, prints `ready ISSUER`, and ends when its stdin is closed, unless `stay` follows.
// A line on stdin is a command: `rotate` signs by a new key and publishes the old ones too (as SIGHUP does), `forget` drops the old ones.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { Provider, errors, interactionPolicy } from 'oidc-provider';

const AUDIENCE = 'flotilla-identity';
// A resource must be an absolute URI (RFC 8707); the audience of its tokens need not be one.
const RESOURCE = 'urn:flotilla:identity';
const SCOPES = 'email profile';
const PASSWORD = 'urn:flotilla:acr:password';
const MFA = 'urn:flotilla:acr:mfa';
const MOST_ENTRIES = 10_000;
const HOUR = 3600;
const DAY = 24 * HOUR;

// stdout is only for the lines that a test reads. The library says its notices there.
console.info = console.error;
process.stdout.on('error', () => {});

/** Everybody who can type a name is a person. */
function person(login) {
  return {
    sub: login,
    email: `${login}@people.example`,
    email_verified: !login.startsWith('unverified-'),
    name: login[0].toUpperCase() + login.slice(1),
    locale: login === 'ann' ? 'de-DE' : 'en-GB',
    zoneinfo: login === 'ann' ? 'Europe/Berlin' : 'Europe/London',
  };
}

/** What the library keeps, of all its models, outlives a provider: a rotation makes a new one. */
const entries = new Map();

class Memory {
  constructor(model) {
    this.prefix = `${model}:`;
  }

  async upsert(id, payload, seconds) {
    // Set anew, so that the oldest is the first.
    entries.delete(this.prefix + id);
    entries.set(this.prefix + id, { payload, ends: Date.now() + seconds * 1000 });
    if (entries.size > MOST_ENTRIES) entries.delete(entries.keys().next().value);
  }

  async find(id) {
    const entry = entries.get(this.prefix + id);
    return entry && entry.ends > Date.now() ? entry.payload : undefined;
  }

  async destroy(id) {
    entries.delete(this.prefix + id);
  }

  async consume(id) {
    const payload = await this.find(id);
    if (payload) payload.consumed = Math.floor(Date.now() / 1000);
  }

  async findByUid(uid) {
    return this.all().find(([, payload]) => payload.uid === uid)?.[1];
  }

  async findByUserCode(code) {
    return this.all().find(([, payload]) => payload.userCode === code)?.[1];
  }

  async revokeByGrantId(grant) {
    for (const [key, payload] of this.all()) if (payload.grantId === grant) entries.delete(key);
  }

  all() {
    const now = Date.now();
    return [...entries].filter(([key, entry]) => key.startsWith(this.prefix) && entry.ends > now).map(([key, entry]) => [key, entry.payload]);
  }
}

/** The first of the classes that a client asks for, if it is one of ours. */
const asked = (params) => params.acr_values?.split(' ').find((acr) => acr === PASSWORD || acr === MFA);

/** Step-up (RFC 9470): who signed in by less than the client asks for must sign in again. */
function policy() {
  const { base, Check } = interactionPolicy;
  const prompts = base();
  prompts.get('login').checks.add(
    new Check('acr_values', 'a stronger sign-in is asked for', 'unmet_authentication_requirements', ({ oidc }) =>
      asked(oidc.params) === MFA && oidc.acr !== MFA ? Check.REQUEST_PROMPT : Check.NO_NEED_TO_PROMPT,
    ),
  );
  return prompts;
}

/** What an access token says of the person and of the sign-in, which its code or refresh token remembers. */
function claims(ctx, token) {
  const { AuthorizationCode, RefreshToken, DeviceCode } = ctx.oidc.entities;
  const source = AuthorizationCode ?? RefreshToken ?? DeviceCode;
  const { email, email_verified, name, locale, zoneinfo } = person(token.accountId);
  return {
    acr: source.acr,
    auth_time: source.authTime,
    ...(token.scopes.has('email') && { email, email_verified }),
    ...(token.scopes.has('profile') && { name, locale, zoneinfo }),
  };
}

const draw = () => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
// The first signs.
let keys = [draw()];
const cookieKeys = [randomBytes(32).toString('base64url')];

const provider = (issuer) => {
  // The library's own pages fetch a font from the web: ours are in their place.
  const made = new Provider(issuer, {
    adapter: Memory,
    jwks: { keys },
    cookies: { keys: cookieKeys },
    clients: [
      {
        client_id: 'flotilla-cli',
        client_name: 'Flotilla',
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
        response_types: ['code'],
        // A native client may name any port (RFC 8252, 7.3).
        redirect_uris: ['http://127.0.0.1/callback'],
      },
    ],
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'locale', 'zoneinfo'] },
    acrValues: [PASSWORD, MFA],
    findAccount: (_ctx, login) => ({ accountId: login, claims: () => person(login) }),
    extraTokenClaims: claims,
    interactions: { policy: policy(), url: (_ctx, { uid }) => `/interaction/${uid}` },
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    pkce: { required: () => true },
    ttl: { AccessToken: 300, IdToken: 300, DeviceCode: 600, Interaction: HOUR, Session: DAY, Grant: DAY, RefreshToken: DAY },
    features: {
      devInteractions: { enabled: false },
      deviceFlow: {
        enabled: true,
        userCodeInputSource: (ctx, form, _out, error) =>
          show(ctx, 'Enter the code', `${error ? '<p>That code is not known.</p>' : ''}${form}<button form="op.deviceInputForm">Continue</button>`),
        userCodeConfirmSource: (ctx, form, _client, _device, code) =>
          show(ctx, `Is ${text(code)} the code on your device?`, `${form}<button form="op.deviceConfirmForm">Yes</button>`),
        successSource: (ctx) => show(ctx, 'Signed in', '<p>The device goes on by itself.</p>'),
      },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: (ctx, form) => show(ctx, 'Sign out?', `${form}<button form="op.logoutForm" name="logout" value="yes">Yes</button>`),
        postLogoutSuccessSource: (ctx) => show(ctx, 'Signed out', ''),
      },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => RESOURCE,
        useGrantedResource: () => true,
        getResourceServerInfo: (_ctx, resource) => {
          if (resource !== RESOURCE) throw new errors.InvalidTarget();
          return { audience: AUDIENCE, scope: SCOPES, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg: 'ES256' } } };
        },
      },
    },
    renderError: (ctx, out) => show(ctx, 'That did not work', `<p>${text(out.error)}: ${text(out.error_description ?? '')}</p>`),
  });
  made.on('server_error', (_ctx, error) => console.error(error));
  return made;
};

const text = (value) => String(value).replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
const page = (title, body) => `<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>${title}</title><h1>${title}</h1>${body}</html>`;
function show(ctx, title, body) {
  ctx.type = 'html';
  ctx.body = page(title, body);
}

/** The one form: it asks who signs in, if somebody must, and grants what the client asks for. */
async function interact(op, request, response) {
  const { prompt, params, session, grantId } = await op.interactionDetails(request, response);
  const signsIn = prompt.name === 'login';
  let problem = '';
  if (request.method === 'POST') {
    const form = new URLSearchParams((await request.setEncoding('utf8').toArray()).join(''));
    if (form.has('refuse')) return op.interactionFinished(request, response, { error: 'access_denied' }, { mergeWithLastSubmission: false });
    const login = signsIn ? (form.get('login') ?? '') : session.accountId;
    if (/^[\w.+-]{1,64}$/.test(login)) {
      const known = grantId && (await op.Grant.find(grantId));
      const grant = known?.accountId === login ? known : new op.Grant({ accountId: login, clientId: params.client_id });
      grant.addOIDCScope(params.scope ?? '');
      grant.addResourceScope(RESOURCE, SCOPES);
      const acr = asked(params) ?? PASSWORD;
      return op.interactionFinished(request, response, {
        ...(signsIn && { login: { accountId: login, acr, amr: acr === MFA ? ['pwd', 'otp'] : ['pwd'] } }),
        consent: { grantId: await grant.save() },
      });
    }
    problem = '<p>A name has 1 to 64 letters, digits, or any of . _ + -</p>';
  }
  const field = `<p><label>Name <input name="login" autofocus value="${text(params.login_hint ?? session?.accountId ?? '')}"></label></p>`;
  response.writeHead(problem ? 400 : 200, { 'content-type': 'text/html', 'cache-control': 'no-store' });
  response.end(
    page(
      'Sign in to Flotilla',
      `${problem}<p>It asks for: ${text(params.scope ?? '')}${asked(params) === MFA ? ', and for a second factor (which is made up)' : ''}.</p>
      <form method="post">${signsIn ? field : ''}<button>Continue</button> <button name="refuse">Refuse</button></form>`,
    ),
  );
}

const server = createServer(async (request, response) => {
  // One request sees one provider, whatever is rotated meanwhile.
  const { op, callback } = current;
  if (!request.url.startsWith('/interaction/')) return callback(request, response);
  try {
    await interact(op, request, response);
  } catch (error) {
    response.writeHead(400, { 'content-type': 'text/plain' }).end(`${error.message}\n`);
  }
});

let current;
function serve() {
  const op = provider(`http://127.0.0.1:${server.address().port}`);
  current = { op, callback: op.callback() };
}
// A provider reads its keys once, so others need a new one.
function sign(others) {
  keys = others;
  serve();
  console.log(`keys ${keys.length}`);
}
const rotate = () => sign([draw(), ...keys]);
const commands = { rotate, forget: () => sign(keys.slice(0, 1)) };

server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  serve();
  console.log(`ready ${current.op.issuer}`);
});
process.on('SIGHUP', rotate);
if (process.argv[3] !== 'stay') {
  createInterface({ input: process.stdin })
    .on('line', (line) => commands[line.trim()]?.())
    .on('close', () => process.exit());
}
