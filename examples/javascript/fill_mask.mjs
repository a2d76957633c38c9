// Fills [MASK] in Node, with a model that `python -m serving.export` wrote:
//
//     node fill_mask.mjs ../../exported "今天[MASK]气很好，我们去公园散步吧。"

import fs from "node:fs";
import path from "node:path";
import { AutoTokenizer, FillMaskPipeline, ModernBertForMaskedLM, env } from "@huggingface/transformers";

// Loads a model folder: dtype "q8" is onnx/model_quantized.onnx, "fp32" onnx/model.onnx.
export async function open(folder, dtype) {
  const absolute = path.resolve(folder);
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(absolute);
  const name = path.basename(absolute);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  // The library knows this model by no name of its own; this class runs any graph of ids and mask.
  const model = await ModernBertForMaskedLM.from_pretrained(name, { dtype });
  return new FillMaskPipeline({ task: "fill-mask", model, tokenizer });
}

const script = process.argv[1];
if (script && fs.realpathSync(script) === import.meta.filename) {
  const [folder, ...texts] = process.argv.slice(2);
  if (!folder || texts.length === 0) {
    console.error("usage: node fill_mask.mjs FOLDER TEXT ...");
    process.exit(2);
  }
  const fill = await open(folder, "q8");
  for (const text of texts) {
    for (const { token_str, score } of await fill(text, { top_k: 5 })) {
      console.log(`${token_str}\t${score.toFixed(3)}`);
    }
  }
}
