// The service of the ends in node, and its messages.
'use strict';

const SERVICE = 'test.Calls';

function varint(number) {
  const out = [];
  for (; number > 127; number = Math.floor(number / 128)) out.push((number & 127) | 128);
  return Buffer.from([...out, number]);
}

function encode([name, count]) {
  const text = Buffer.from(name);
  return Buffer.concat([Buffer.from([0x0a]), varint(text.length), text, Buffer.from([0x10]), varint(count)]);
}

function readVarint(data, at) {
  let number = 0;
  for (let scale = 1; ; scale *= 128) {
    const byte = data[at++];
    number += (byte & 127) * scale;
    if (byte < 128) return [number, at];
  }
}

function decode(data) {
  const [size, at] = readVarint(data, 1);
  return [data.subarray(at, at + size).toString(), readVarint(data, at + size + 1)[0]];
}

module.exports = { SERVICE, encode, decode };
