// Asks a built site what its own search finds: node search.js SITE WORDS... prints the locations of each, best first, as JSON.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...asked] = process.argv.slice(2);
const read = (...names) => fs.readFileSync(path.join(site, ...names), "utf8");
const worker = fs.readdirSync(path.join(site, "assets/javascripts/workers")).find((name) => name.endsWith(".min.js"));

let hear, answer;
class Worker {
  postMessage(data) {
    hear({ data });
  }
}
const world = { console, Worker, addEventListener: (_, listener) => (hear = listener), postMessage: (said) => answer(said) };
world.self = world;
vm.createContext(world);
vm.runInContext(read("assets/javascripts/workers", worker), world);
vm.runInContext(read("assets/search.js"), world);

const page = new Worker();
const ask = (type, data) => new Promise((resolve) => ((answer = resolve), page.postMessage({ type, data })));

(async () => {
  await ask(0, { ...JSON.parse(read("search/search_index.json")), options: {} });
  const found = {};
  for (const words of asked) {
    const groups = (await ask(2, words)).data.items;
    found[words] = groups.flat().filter((item) => item.score > 0).map((item) => item.location);
  }
  console.log(JSON.stringify(found));
})();
