// Whether tokens and fills in Node are those of Python:
//
//     python -m serving.javascript_cases --exported exported --output cases.json
//     node check.mjs ../../exported ../../cases.json

import fs from "node:fs";
import { open } from "./fill_mask.mjs";

const [folder, casesFile] = process.argv.slice(2);
const { tokens: texts, fills } = JSON.parse(fs.readFileSync(casesFile, "utf-8"));
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// The likeliest tokens for each [MASK] of a text.
async function likeliest({ tokenizer, model }, text) {
  const inputs = tokenizer(text);
  const { logits } = await model(inputs);
  const places = Array.from(inputs.input_ids.data, Number);
  const size = logits.dims[2];
  return places.flatMap((id, place) => {
    if (id !== tokenizer.mask_token_id) return [];
    const row = logits.data.subarray(place * size, (place + 1) * size);
    const best = Array.from(row.keys()).sort((one, other) => row[other] - row[one]);
    return [best.slice(0, 5).map((token) => tokenizer.decode([token]))];
  });
}

let wrong = 0;
for (const dtype of Object.keys(fills[0].tokens)) {
  const fill = await open(folder, dtype);
  const others = texts.filter(({ text, ids }) => !same(fill.tokenizer.encode(text), ids));
  for (const { text } of others.slice(0, 5)) console.log("other tokens:", JSON.stringify(text));
  console.log(`${dtype}: the same tokens for ${texts.length - others.length} of ${texts.length} texts`);
  wrong += others.length;
  for (const { text, tokens } of fills) {
    const given = await likeliest(fill, text);
    if (same(given, tokens[dtype])) continue;
    console.log(`${text}: ${JSON.stringify(given)}, in Python ${JSON.stringify(tokens[dtype])}`);
    wrong += 1;
  }
  console.log(`${dtype}: ${fills.length} sentences with masks compared`);
}
console.log(wrong === 0 ? "all the same" : `${wrong} differ`);
process.exit(wrong === 0 ? 0 : 1);
