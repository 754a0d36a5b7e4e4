// The gRPC-Web client that browsers use, the package grpc-web, in node: XMLHttpRequest is the package xhr2's.
//
//   node web.js client JOURNAL HOST PORT text|binary [CERTIFICATES]
//
// Input and journal are those of ../grpc_end.py; the package can send one message a call. CERTIFICATES: over TLS, and
// NODE_EXTRA_CA_CERTS names the CA to trust. NODE_PATH says where the packages are.
'use strict';

const fs = require('fs');
const readline = require('readline');
const web = require('grpc-web');

global.XMLHttpRequest = require('xhr2');

const { SERVICE, encode, decode } = require('./messages.js');

function describe(name, single) {
  const type = single ? web.MethodType.UNARY : web.MethodType.SERVER_STREAMING;
  return new web.MethodDescriptor(`/${SERVICE}/${name}`, type, Array, Array, encode, (data) => decode(Buffer.from(data)));
}

function make(client, at, number, { method, send }, journal) {
  return new Promise((resolve) => {
    const received = [];
    const metadata = {
      'x-call': String(number), 'x-data-bin': Buffer.from(`\x00\xff${number}`, 'latin1').toString('base64'),
    };
    const done = (status, message) => {
      fs.appendFileSync(journal, `${JSON.stringify({
        call: String(number), method, requests: send, responses: received, status, message, client: null, server: null,
      })}\n`);
      resolve();
    };
    const single = method === 'Unary' || method === 'Fail';
    const descriptor = describe(method, single);
    const url = `${at}/${SERVICE}/${method}`;
    if (single) {
      client.rpcCall(url, send[0], metadata, descriptor, (error, answer) => {
        if (error) return done(error.code, error.message);
        received.push(answer);
        return done(0, '');
      });
      return;
    }
    const stream = client.serverStreaming(url, send[0], metadata, descriptor);
    let failure = null;
    stream.on('data', (answer) => received.push(answer));
    stream.on('error', (error) => { failure = error; done(error.code, error.message); });
    stream.on('end', () => { if (!failure) done(0, ''); });
  });
}

async function ask(journal, host, port, form, certificates) {
  const input = readline.createInterface({ input: process.stdin });
  const calls = JSON.parse(await new Promise((resolve) => input.once('line', resolve)));
  const client = new web.GrpcWebClientBase({ format: form });
  const at = `${certificates === undefined ? 'http' : 'https'}://${host}:${port}`;
  for (const [number, call] of calls.entries()) await make(client, at, number, call, journal);
  console.log('done');
}

ask(...process.argv.slice(3));
