// The node client of the HTTP/2 tests: as clients/http2.py, with the http2 module.
//
//     node node_http2.js JOURNAL ADDRESS TRANSPORT REQUEST...
"use strict";

const fs = require("fs");
const http2 = require("http2");
const readline = require("readline");

const [path, to, transport, ...specs] = process.argv.slice(2);
const journal = fs.openSync(path, "a");
const [host, port] = JSON.parse(to);
const plan = specs.map((spec) => JSON.parse(spec));
const alphabet = "abcdefghijklmnopqrstuvwxyz";
let session;
let number = 0;

function fold(headers) {
  const pairs = Object.entries(headers).filter(([name]) => !name.startsWith(":"));
  return pairs.map(([name, value]) => [name, String(value)]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
}

function call(spec) {
  return new Promise((resolve, reject) => {
    const headers = { "x-call": String(number++), ...spec.headers };
    const pseudo = { ":method": spec.method || "GET", ":path": spec.path };
    const stream = session.request({ ...pseudo, ...headers }, { endStream: spec.size === undefined });
    let answered = {};
    let size = 0;
    stream.on("response", (got) => { answered = got; });
    stream.on("data", (piece) => { size += piece.length; });
    stream.on("error", reject);
    const id = () => stream.id;
    let seen;
    stream.on("ready", () => { seen = id(); });
    stream.on("end", () => {
      const socket = session.socket;
      fs.writeSync(journal, `${JSON.stringify({
        method: pseudo[":method"],
        path: spec.path,
        status: answered[":status"],
        request_headers: fold(headers),
        request_size: spec.size || 0,
        response_headers: fold(answered),
        response_size: size,
        client: [socket.localAddress, socket.localPort],
        server: [socket.remoteAddress, socket.remotePort],
        stream: seen === undefined ? stream.id : seen,
      })}\n`);
      resolve();
    });
    if (spec.size !== undefined) {
      stream.end(alphabet.repeat(spec.size / 26 + 1).slice(0, spec.size));
    }
  });
}

async function round() {
  if (session === undefined) {
    session = http2.connect(`${transport === "tls" ? "https" : "http"}://${host}:${port}`, { rejectUnauthorized: false });
    await new Promise((resolve) => { session.once("connect", resolve); });
  }
  await Promise.all(plan.map(call));
  console.log("done");
}

readline.createInterface({ input: process.stdin }).on("line", round).on("close", () => process.exit());
