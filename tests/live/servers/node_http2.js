// The node server of the HTTP/2 tests: the http2 module, with a journal like the Python servers'.
//
//     node node_http2.js JOURNAL [CERTIFICATE]
//
// Prints the address it listens on as one JSON line. With a certificate (a PEM file with its key) it speaks TLS, else
// h2c by prior knowledge. Paths as of servers/http2.py: /bytes/N, /status/CODE, /echo, /trailers/N, /held.
"use strict";

const fs = require("fs");
const http2 = require("http2");

const journal = fs.openSync(process.argv[2], "a");
const alphabet = "abcdefghijklmnopqrstuvwxyz";

// The record's folding of what is no pseudo-header field: repeats joined, sorted by name.
function fold(headers) {
  const pairs = Object.entries(headers).filter(([name]) => !name.startsWith(":"));
  return pairs.map(([name, value]) => [name, String(value)]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
}

function answer(stream, headers, body) {
  const [, kind, argument] = headers[":path"].split("/");
  const number = Number(argument);
  let status = 200;
  let content = body;
  if (kind === "bytes" || kind === "trailers") {
    content = Buffer.from(alphabet.repeat(number / 26 + 1).slice(0, number));
  } else if (kind === "status") {
    [status, content] = [number, Buffer.alloc(0)];
  }
  const said = { server: "node", "x-kind": kind, "content-length": content.length, "x-number": stream.id };
  const socket = stream.session.socket;
  const call = {
    method: headers[":method"],
    path: headers[":path"],
    status,
    request_headers: fold(headers),
    request_size: body.length,
    response_headers: fold(said),
    response_size: content.length,
    client: [socket.remoteAddress, socket.remotePort],
    server: [socket.localAddress, socket.localPort],
    stream: stream.id,
  };
  const options = { waitForTrailers: kind === "trailers", sendDate: false };
  if (kind === "trailers") {
    stream.on("wantTrailers", () => stream.sendTrailers({ "x-sum": String(number), "x-kind": "same" }));
  }
  stream.respond({ ":status": status, ...said }, options);
  stream.end(content);
  fs.writeSync(journal, `${JSON.stringify(call)}\n`);
}

function take(stream, headers) {
  const pieces = [];
  stream.on("error", () => {});
  stream.on("data", (piece) => pieces.push(piece));
  stream.on("end", () => {
    const go = () => answer(stream, headers, Buffer.concat(pieces));
    if (headers[":path"] === "/held") fs.readFile(`${process.argv[2]}.gate`, go);
    else go();
  });
}

const pem = process.argv[3] && fs.readFileSync(process.argv[3]);
const server = pem ? http2.createSecureServer({ key: pem, cert: pem }) : http2.createServer();
server.on("stream", take);
server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  console.log(JSON.stringify([address, port]));
});
