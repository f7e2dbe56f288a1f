// Nodemailer's SMTP server as a test needs it: it takes mail, prints a line of JSON for each, and has moods.
//
// Settings come as one JSON object in the environment variable SETTINGS:
//   users {user: password}, key, cert (PEM), size, maxClients, socketTimeout (ms),
//   greylist (ms): a sender and recipient seen for the first time are put off until that much later,
//   rate {messages, per (ms)}: more are put off with 450 4.7.1,
//   refuse: addresses that begin so are refused for good,
//   logins: so many are answered 454 before one is looked at,
//   greetings: so many connections are answered 421 before one is greeted.
import { SMTPServer } from 'smtp-server';

const settings = JSON.parse(process.env.SETTINGS);
const secure = settings.key ? { key: settings.key, cert: settings.cert } : { disabledCommands: ['STARTTLS'] };
const seen = new Map();
const counts = { logins: settings.logins ?? 0, greetings: settings.greetings ?? 0 };
let taken = [];

function refusal(code, text) {
  return Object.assign(new Error(text), { responseCode: code });
}

function unwanted(address) {
  return settings.refuse !== undefined && address.address.startsWith(settings.refuse);
}

function print(event) {
  process.stdout.write(JSON.stringify(event) + '\n');
}

const hooks = {
  onConnect(session, done) {
    print({ event: 'connect' });
    done(counts.greetings-- > 0 ? refusal(421, '4.3.2 not now') : null);
  },
  onClose() {
    print({ event: 'hung up' });
  },
  onAuth({ username, password }, session, done) {
    print({ event: 'login' });
    if (counts.logins-- > 0) done(refusal(454, '4.7.0 Temporary authentication failure'));
    else if (Object.hasOwn(settings.users ?? {}, username) && settings.users[username] === password) done(null, { user: username });
    else done(refusal(535, '5.7.8 Authentication credentials invalid'));
  },
  onMailFrom(address, session, done) {
    if (unwanted(address)) return done(refusal(550, '5.7.1 not from you'));
    const now = Date.now();
    const { messages, per } = settings.rate ?? {};
    taken = taken.filter((time) => time > now - per);
    if (messages && taken.length >= messages) {
      print({ event: 'put off' });
      done(refusal(450, '4.7.1 Error: too much mail from ' + session.remoteAddress));
    } else {
      taken.push(now);
      done();
    }
  },
  onRcptTo(address, session, done) {
    if (unwanted(address)) return done(refusal(550, '5.1.1 nobody here'));
    if (settings.greylist !== undefined) {
      const key = session.envelope.mailFrom.address + ' ' + address.address;
      if (!seen.has(key)) seen.set(key, Date.now());
      if (Date.now() - seen.get(key) < settings.greylist) {
        print({ event: 'put off' });
        done(refusal(451, '4.7.1 Greylisted, see http://postgrey.example.test/help'));
        return;
      }
    }
    done();
  },
  onData(stream, session, done) {
    const parts = [];
    stream.on('data', (part) => parts.push(part));
    stream.on('end', () => {
      if (stream.sizeExceeded) return done(refusal(552, '5.3.4 too big'));
      print({
        event: 'message',
        sender: session.envelope.mailFrom.address,
        recipients: session.envelope.rcptTo.map((recipient) => recipient.address),
        content: Buffer.concat(parts).toString('base64'),
        user: session.user ?? null,
        secure: session.secure,
      });
      done();
    });
  },
};

const common = {
  ...secure,
  ...hooks,
  name: 'nodemailer.example.test',
  logger: false,
  authOptional: !settings.users,
  authMethods: ['PLAIN', 'LOGIN'],
  disableReverseLookup: true,
  size: settings.size,
  maxClients: settings.maxClients,
  socketTimeout: settings.socketTimeout,
  closeTimeout: 100,
};
const servers = [new SMTPServer(common)];
if (settings.key) servers.push(new SMTPServer({ ...common, secure: true }));
const ports = servers.map(
  (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.server.address().port))),
);
for (const server of servers) server.on('error', () => {}); // clients that hang up are what it is for
print({ event: 'ports', ports: await Promise.all(ports) });
// Whoever has read the answer to his line has read all that was told before. It ends with whoever started it.
process.stdin.on('data', (lines) => lines.toString().split('\n').slice(1).forEach(() => print({ event: 'so far' })));
process.stdin.on('end', () => process.exit(0));
