// The node server of the tests: the http or https module, with a journal like the Python servers'.
//
//     node node.js JOURNAL [CERTIFICATES]
//
// Prints the address it listens on as one JSON line. Paths: /bytes/N, /status/CODE, /echo. The headers of its
// answers are not in the journal, because node adds to them after the handler; the client's journal has them.
"use strict";

const fs = require("fs");
const http = require("http");
const https = require("https");

const journal = fs.openSync(process.argv[2], "a");
const alphabet = "abcdefghijklmnopqrstuvwxyz";

// The record's folding: lower-case names, repeats joined, sorted by name.
function fold(raw) {
  const folded = new Map();
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i].toLowerCase();
    folded.set(name, folded.has(name) ? `${folded.get(name)}, ${raw[i + 1]}` : raw[i + 1]);
  }
  return [...folded].sort((a, b) => (a[0] < b[0] ? -1 : 1));
}

function answerTo(request, body) {
  const [, kind, argument] = new URL(request.url, "http://x").pathname.split("/");
  const number = Number(argument);
  if (kind === "bytes") {
    return [200, alphabet.repeat(number / 26 + 1).slice(0, number)];
  }
  return kind === "status" ? [number, ""] : [200, body];
}

function sessionOf(socket) {
  return socket.encrypted ? [socket.getProtocol(), socket.servername || null, socket.alpnProtocol || null] : null;
}

function answer(request, response) {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    const [status, content] = answerTo(request, body);
    if (request.headers["transfer-encoding"] === undefined) { // a request in chunks is answered in chunks
      response.setHeader("Content-Length", content.length);
    }
    response.writeHead(status);
    response.end(content);
    const { remoteAddress, remotePort, localAddress, localPort } = request.socket;
    const call = {
      method: request.method,
      path: request.url,
      status,
      request_headers: fold(request.rawHeaders),
      request_size: body.length,
      response_headers: [],
      response_size: request.method === "HEAD" ? 0 : content.length,
      client: [remoteAddress, remotePort],
      server: [localAddress, localPort],
      tls: sessionOf(request.socket),
    };
    fs.writeSync(journal, `${JSON.stringify(call)}\n`);
  });
}

const certificates = process.argv[3];
const server = certificates === undefined ? http.createServer(answer) : https.createServer({
  cert: fs.readFileSync(`${certificates}/server.pem`),
  key: fs.readFileSync(`${certificates}/server.key`),
}, answer);
server.keepAliveTimeout = 60000;

server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  console.log(JSON.stringify([address, port]));
});
