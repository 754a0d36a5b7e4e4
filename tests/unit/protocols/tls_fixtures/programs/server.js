// An https server of node. Arguments: port, folder of the certificate.
const fs = require("node:fs");
const [port, folder] = process.argv.slice(2);
require("node:https").createServer({
  key: fs.readFileSync(`${folder}/key.pem`), cert: fs.readFileSync(`${folder}/cert.pem`),
}, (request, response) => response.end("hello from node\n")).listen(port, "127.0.0.1");
