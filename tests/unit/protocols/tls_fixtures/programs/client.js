// One request by node's https; prints what the session agreed on. Arguments: port, sni, alpn,..., min-max version.
const https = require("node:https");
const [port, servername, alpn, version] = process.argv.slice(2);
const request = https.request({
  port, servername, host: "127.0.0.1", path: "/", agent: false, rejectUnauthorized: false,
  ALPNProtocols: alpn ? alpn.split(",") : undefined, minVersion: version, maxVersion: version,
}, (response) => response.resume());
request.on("socket", (socket) => socket.on("secureConnect", () => console.log(JSON.stringify({
  version: socket.getProtocol(), cipher: socket.getCipher().standardName, alpn: socket.alpnProtocol || null,
}))));
request.end();
