// Tokens and keys of the package jose.
//
// With "make", a folder: writes ALGORITHM.public, ALGORITHM.private and ALGORITHM.token there, keys in PEM or, for HS256, a secret.
// With "verify", a token: prints its user if the key in the file "key" has signed it with "algorithm".

import { readFileSync, writeFileSync } from "node:fs";
import * as jose from "jose";

const orders = JSON.parse(process.argv[2]);
const algorithms = ["HS256", "RS256", "PS256", "ES256", "ES384", "EdDSA"];

async function make(folder, algorithm) {
  const write = (kind, text) => writeFileSync(`${folder}/${algorithm}.${kind}`, text);
  let key;
  if (algorithm === "HS256") {
    const secret = "a secret of more than thirty-two bytes";
    write("public", secret);
    write("private", secret);
    key = new TextEncoder().encode(secret);
  } else {
    const pair = await jose.generateKeyPair(algorithm, { extractable: true });
    write("public", await jose.exportSPKI(pair.publicKey));
    write("private", await jose.exportPKCS8(pair.privateKey));
    key = pair.privateKey;
  }
  const token = new jose.SignJWT({ sub: "alice" }).setProtectedHeader({ alg: algorithm, kid: "k" });
  write("token", await token.setIssuedAt().setExpirationTime("1h").sign(key));
}

if (orders.make) {
  for (const algorithm of algorithms) {
    await make(orders.make, algorithm);
  }
} else {
  const { algorithm } = orders;
  const text = readFileSync(orders.key, "utf8");
  const key = algorithm === "HS256" ? new TextEncoder().encode(text) : await jose.importSPKI(text, algorithm);
  const { payload } = await jose.jwtVerify(orders.verify, key, { algorithms: [algorithm] });
  console.log(payload.sub);
}
