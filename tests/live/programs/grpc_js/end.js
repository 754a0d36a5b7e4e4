// The @grpc/grpc-js ends of the tests: see ../grpc_end.py, of which this is the same for node.
//
//   node end.js server JOURNAL [CERTIFICATES]
//   node end.js client JOURNAL HOST PORT [CERTIFICATES]
//
// CERTIFICATES is a directory that ../../certificates.py has filled: TLS.
// NODE_PATH says where the package is.
'use strict';

const fs = require('fs');
const readline = require('readline');
const grpc = require('@grpc/grpc-js');

const { SERVICE, encode, decode } = require('./messages.js');

function method(name) {
  return {
    path: `/${SERVICE}/${name}`, requestStream: true, responseStream: true, requestSerialize: encode,
    requestDeserialize: decode, responseSerialize: encode, responseDeserialize: decode,
  };
}

const METHODS = Object.fromEntries(['Unary', 'List', 'Break', 'Store', 'Talk', 'Fail', 'Slow'].map((name) => [name, method(name)]));

function write(journal, entry) {
  fs.appendFileSync(journal, JSON.stringify(entry) + '\n');
}

function peer(text) {
  const at = text.lastIndexOf(':');
  return [text.slice(0, at), Number(text.slice(at + 1))];
}

function trailer(number) {
  const metadata = new grpc.Metadata();
  metadata.set('x-done-bin', Buffer.concat([Buffer.from([0, 255]), Buffer.from(number)]));
  return metadata;
}

function handler(journal, name) {
  return (call) => {
    const [number] = call.metadata.get('x-call');
    const entry = {
      call: number, method: name, requests: [], responses: [], status: 0, message: '', client: peer(call.getPeer()), server: null,
    };
    let total = 0;
    let broken = '';
    let over = false;
    const initial = new grpc.Metadata();
    initial.set('x-served', number);
    call.sendMetadata(initial);
    const send = (message) => { entry.responses.push(message); call.write(message); };
    const end = (code, details) => {
      if (over) return;
      over = true;
      entry.status = code;
      entry.message = details;
      write(journal, entry);
      if (code === 0) call.end(trailer(number));
      else call.emit('error', { code, details, metadata: trailer(number) });
    };
    call.on('data', ([text, count]) => {
      entry.requests.push([text, count]);
      total += count;
      if (name === 'Unary' || name === 'Talk' || (name === 'Slow' && count)) send([text, count]);
      if (name === 'List' || name === 'Break') for (let index = 0; index < count; index++) send([text, index]);
      if (name === 'Break') broken = text;
      if (name === 'Fail') end(count, text);
    });
    call.on('end', () => {
      if (name === 'Store') send(['stored', total]);
      if (name === 'Break') end(10, broken);
      else if (name !== 'Slow') end(0, 'OK');  // which the library sends as the message
    });
    call.on('cancelled', () => end(1, 'given up'));
  };
}

function serve(journal, certificates) {
  const server = new grpc.Server();
  const handlers = Object.fromEntries(Object.keys(METHODS).map((name) => [name, handler(journal, name)]));
  server.addService(METHODS, handlers);
  const credentials = certificates === undefined ? grpc.ServerCredentials.createInsecure()
    : grpc.ServerCredentials.createSsl(null, [{
      private_key: fs.readFileSync(`${certificates}/server.key`), cert_chain: fs.readFileSync(`${certificates}/server.pem`),
    }]);
  server.bindAsync('127.0.0.1:0', credentials, (error, port) => {
    if (error) throw error;
    console.log(JSON.stringify(['127.0.0.1', port]));
  });
}

function make(client, number, call, journal) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    metadata.set('x-call', String(number));
    metadata.set('x-data-bin', Buffer.concat([Buffer.from([0, 255]), Buffer.from(String(number))]));
    const options = call.timeout_ms ? { deadline: Date.now() + call.timeout_ms } : {};
    const received = [];
    const stream = client[call.method](metadata, options);
    stream.on('data', (message) => {
      received.push(message);
      if (call.cancel) stream.cancel();
      if (call.method === 'Break' && received.length === call.send[0][1]) stream.end();
    });
    stream.on('error', () => {});
    stream.on('status', (status) => {
      write(journal, {
        call: String(number), method: call.method, requests: call.send, responses: received, status: status.code,
        message: status.details, client: null, server: null,
      });
      resolve();
    });
    for (const message of call.send) stream.write(message);
    if (call.method !== 'Break') stream.end();
  });
}

async function ask(journal, host, port, certificates) {
  const input = readline.createInterface({ input: process.stdin });
  const calls = JSON.parse(await new Promise((resolve) => input.once('line', resolve)));
  const Client = grpc.makeGenericClientConstructor(METHODS, SERVICE);
  const credentials = certificates === undefined ? grpc.credentials.createInsecure()
    : grpc.credentials.createSsl(fs.readFileSync(`${certificates}/ca.pem`));
  const named = { 'grpc.ssl_target_name_override': 'localhost' };
  const plain = new Client(`${host}:${port}`, credentials, named);
  const packing = new Client(`${host}:${port}`, credentials, {
    ...named,
    'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip, 'grpc.use_local_subchannel_pool': 1,
  });
  for (const [number, call] of calls.entries()) await make(call.gzip ? packing : plain, number, call, journal);
  plain.close();
  packing.close();
  console.log('done');
}

const [kind, journal, ...rest] = process.argv.slice(2);
if (kind === 'server') serve(journal, ...rest);
else ask(journal, ...rest);
