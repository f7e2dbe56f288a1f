// nodemailer's pool as the program that is measured; the same dialogue with the benchmark as client.py.
// usage: node nodemailer.cjs FOLDER-OF-NODEMAILER JOB
'use strict';
const fs = require('fs');
const nodemailer = require(process.argv[2]);
const job = JSON.parse(process.argv[3]);

function kib(field) {
    const line = fs.readFileSync('/proc/self/status', 'utf8').split('\n').find(l => l.startsWith(field));
    return parseInt(line.split(/\s+/)[1], 10);
}

function recipients(number) {
    return Array.from({ length: job.recipients }, (_, i) => `to-${number}-${i}@example.net`);
}

const base = kib('VmRSS');
const from = 'bench@example.org';
const content = job.form === 'file' ? null : fs.readFileSync(job.path);
const text = job.form === 'message' ? content.toString().split('\r\n\r\n').slice(1).join('\r\n\r\n') : null;

function message(number) {
    if (job.form === 'message') {
        return { from, to: recipients(number), subject: `Order ${number}`, text };
    }
    return { envelope: { from, to: recipients(number) }, raw: job.form === 'file' ? { path: job.path } : content };
}

async function send() {
    // Its own limit of messages a connection (100) stands, as ours does; all messages are handed over at once.
    const transport = nodemailer.createTransport({
        pool: true, host: job.host, port: job.port, name: 'bench.example.net',
        maxConnections: job.connections, ignoreTLS: true,
    });
    const messages = Array.from({ length: job.messages }, (_, number) => message(number));
    console.log('ready');
    await new Promise(resolve => process.stdin.once('data', resolve));
    const cpu = process.cpuUsage();
    const started = process.hrtime.bigint();
    const results = await Promise.all(messages.map(m => transport.sendMail(m)));
    const seconds = Number(process.hrtime.bigint() - started) / 1e9;
    const used = process.cpuUsage(cpu);
    const sent = results.filter(r => /^250/.test(r.response)).length;
    console.log(JSON.stringify({ seconds, cpu: (used.user + used.system) / 1e6, sent, base, peak: kib('VmHWM') }));
    transport.close();
    process.stdin.destroy();
}

send().catch(error => { console.error(error); process.exit(1); });
