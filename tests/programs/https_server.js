// An HTTPS server of Node.js with its defaults: a ticket key of its own, and no listener for sessions.
//
// usage: https_server.js PORT CERT KEY
const https = require('https');
const fs = require('fs');

const [port, cert, key] = process.argv.slice(2);
https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, (request, response) => {
  response.setHeader('Connection', 'close');
  response.end(`worker ${process.pid}\n`);
}).listen(Number(port), '127.0.0.1');
