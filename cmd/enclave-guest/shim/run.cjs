// Runs the file named by its argument as Node runs a script of /work, with a
// global enclave in it.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const Module = require('node:module');

const workDir = '/work';

Object.defineProperty(globalThis, 'enclave', {
  value: Object.freeze({
    // Gives value, which must be JSON-able, as this run's result. It returns
    // when the result has been taken, so process.exit may follow at once, and
    // throws if it was not. Only the first result counts.
    result(value) {
      const json = JSON.stringify(value);
      if (json === undefined) {
        throw new TypeError(`enclave.result: a value of type ${typeof value} can't be given as JSON`);
      }
      const { spawnSync } = require('node:child_process');
      const run = spawnSync('/run/enclave/bin/enclave-result', [], { input: json });
      if (run.error && run.error.code !== 'EPIPE') throw new Error('enclave.result: ' + run.error.message);
      if (run.status !== 0) {
        throw new Error('enclave.result: ' + String(run.stderr).trim().replace(/^enclave-result: /, ''));
      }
    },
  }),
});

const file = process.argv[2];
const source = fs.readFileSync(file, 'utf8');
process.argv.splice(1, 2, file);

// The code counts as lying in /work: what it requires is looked for there.
const name = path.join(workDir, path.basename(file));
const main = new Module('.', null);
main.filename = name;
main.paths = Module._nodeModulePaths(workDir);
main.loaded = false;
process.mainModule = main;
Module._cache[name] = main;

// A module in the newer syntax is loaded from a file, and its imports are looked
// for beside that.
function importIt() {
  const copy = path.join(workDir, `.enclave-${process.pid}.mjs`);
  fs.writeFileSync(copy, source);
  const remove = () => fs.rmSync(copy, { force: true });
  process.once('exit', remove);
  import(copy).finally(remove).catch((err) => {
    process.nextTick(() => { throw err; });
  });
}

const isModuleSyntax = (err) => err instanceof SyntaxError &&
  /Cannot use import statement|Unexpected token 'export'|await is only valid|Cannot use 'import\.meta'/.test(err.message);

let compiled = true;
try {
  // Only asks: nothing runs yet.
  new (require('node:vm').Script)(Module.wrap(source.replace(/^#!.*/, '')), { filename: name });
} catch (err) {
  if (isModuleSyntax(err)) compiled = false;
}
if (compiled) {
  main._compile(source, name);
  main.loaded = true;
} else {
  importIt();
}
