// The node client of the tests: https with a keep-alive agent, or fetch.
//
//     node node.js agent|fetch JOURNAL ADDRESS CA CONCURRENT ROUNDS REQUEST...
//
// As keepalive.py: each of CONCURRENT loops sends all REQUESTs in turn, ROUNDS times; which connection a request takes
// is the agent's choice. Does so each time that its standard input says "go", and ends when that ends. Header fields are not in its
// journal, and with fetch neither addresses nor session are; the server's has them.
"use strict";

const fs = require("fs");
const https = require("https");

const [kind, path, address, ca, concurrent, rounds, ...specs] = process.argv.slice(2);
const journal = fs.openSync(path, "a");
const [host, port] = JSON.parse(address);
const requests = specs.map((spec) => JSON.parse(spec));
const agent = new https.Agent({ keepAlive: true, maxSockets: Number(concurrent), ca: fs.readFileSync(ca) });
let number = 0;

function bodyOf(size) {
  return "abcdefghijklmnopqrstuvwxyz".repeat(size / 26 + 1).slice(0, size);
}

function byAgent(method, spec, headers) {
  return new Promise((resolve, reject) => {
    const options = { agent, host, port, method, path: spec.path, headers, servername: "tls.test" };
    const request = https.request(options, (response) => {
      const { socket } = response;
      const known = {
        client: [socket.localAddress, socket.localPort],
        server: [socket.remoteAddress, socket.remotePort],
        tls: [socket.getProtocol(), "tls.test", socket.alpnProtocol || null],
      };
      let size = 0;
      response.on("data", (piece) => { size += piece.length; });
      response.on("end", () => resolve({ status: response.statusCode, response_size: size, ...known }));
    });
    request.on("error", reject);
    if (spec.size !== undefined) {
      if (!spec.chunked) {
        request.setHeader("Content-Length", spec.size);
      }
      request.write(bodyOf(spec.size));
    }
    request.end();
  });
}

async function byFetch(method, spec, headers) {
  let body = spec.size === undefined ? undefined : bodyOf(spec.size);
  if (spec.chunked) {
    body = new Blob([body]).stream();
  }
  const response = await fetch(`https://${host}:${port}${spec.path}`, { method, headers, body, duplex: "half" });
  const content = await response.arrayBuffer();
  return { status: response.status, response_size: content.byteLength, client: ["", 0], server: ["", 0], tls: null };
}

async function converse() {
  for (let n = 0; n < Number(rounds) * requests.length; n += 1) {
    const spec = requests[n % requests.length];
    const method = spec.method || "GET";
    const call = String(number);
    number += 1;
    const headers = { ...spec.headers, "X-Call": call };
    const told = await (kind === "agent" ? byAgent : byFetch)(method, spec, headers);
    const line = {
      method, path: spec.path, request_headers: [["x-call", call]], request_size: spec.size || 0, response_headers: [],
      ...told,
    };
    fs.writeSync(journal, `${JSON.stringify(line)}\n`);
  }
}

process.stdin.on("data", async () => {
  await Promise.all(Array.from({ length: Number(concurrent) }, converse));
  console.log("done");
});
process.stdin.on("end", () => process.exit());
