// E2B's JavaScript SDK with its code interpreter: commands, files, code.
import assert from "node:assert";
import { Sandbox } from "@e2b/code-interpreter";

const url = process.env.WG_URL;
const sandbox = await Sandbox.create({ apiKey: process.env.WG_KEY, apiUrl: url, sandboxUrl: url, timeoutMs: 120_000 });
try {
  assert.equal((await sandbox.commands.run("echo hi; pwd")).stdout, "hi\n/home/user\n");
  await sandbox.files.write("a/b.txt", "text");
  assert.equal(await sandbox.files.read("a/b.txt"), "text");
  await sandbox.runCode("x = 41");
  assert.equal((await sandbox.runCode("x + 1")).text, "42");
} finally {
  await sandbox.kill();
}
