// The second implementation of snose-permuted-blocks-1: written from app/domain/algorithm.md alone, in another language, with
// Node's own crypto and no code of the service (SEQ-06).
//
// Standard input: {"lists": [{"seed": hex, "specification": {...}}], "streams": [{"label": [...], "below": [n, ...]}]}
// Standard output: {"lists": [text], "streams": [[value, ...]]}; the text has a line for each slot:
// stratum code, position, arm code, block, block size, separated by tabs.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const WORD_VALUES = 2 ** 32;

function labelBytes(fields) {
  const parts = [];
  for (const content of fields) {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(content.length);
    parts.push(length, content);
  }
  return Buffer.concat(parts);
}

function* words(label) {
  let used = 0;
  for (let size = 64; ; size *= 4) {
    const output = createHash("shake256", { outputLength: size }).update(label).digest();
    for (; used < size; used += 4) {
      yield output.readUInt32BE(used);
    }
  }
}

function drawer(fields) {
  const source = words(labelBytes(fields));
  return (n) => {
    const bound = Math.floor(WORD_VALUES / n) * n;
    for (;;) {
      const word = source.next().value;
      if (word < bound) {
        return word % n;
      }
    }
  };
}

function oneSize(below, sizes, weights) {
  let rest = below(weights.reduce((sum, weight) => sum + weight, 0));
  let choice = 0;
  while (rest >= weights[choice]) {
    rest -= weights[choice];
    choice += 1;
  }
  return sizes[choice];
}

function allSizes(below, specification, slots) {
  for (;;) {
    const drawn = [];
    let sum = 0;
    while (sum < slots) {
      const size = oneSize(below, specification.block_sizes, specification.block_size_weights);
      drawn.push(size);
      sum += size;
    }
    if (sum === slots || specification.fill === "overrun") {
      return drawn;
    }
  }
}

function oneBlock(below, arms, size) {
  const whole = arms.reduce((sum, arm) => sum + arm.ratio, 0);
  const entries = arms.flatMap((arm) => Array((arm.ratio * size) / whole).fill(arm.arm_code));
  for (let i = size - 1; i >= 1; i -= 1) {
    const j = below(i + 1);
    const kept = entries[i];
    entries[i] = entries[j];
    entries[j] = kept;
  }
  return entries;
}

function oneList({ seed, specification }) {
  const lines = [];
  for (const stratum of specification.strata) {
    const below = drawer([
      Buffer.from("snose-permuted-blocks-1"),
      Buffer.from(seed, "hex"),
      Buffer.from(specification.study_code),
      Buffer.from(String(specification.segment_number)),
      Buffer.from(stratum.stratum_code),
    ]);
    const past = specification.fill === "overrun" ? Math.max(...specification.block_sizes) : 0;
    const slots = stratum.length + past;
    let position = 0;
    allSizes(below, specification, slots).forEach((size, block) => {
      for (const arm of oneBlock(below, specification.arms, size)) {
        if (position < slots) {
          lines.push([stratum.stratum_code, position, arm, block, size].join("\t"));
          position += 1;
        }
      }
    });
  }
  return lines.map((line) => `${line}\n`).join("");
}

function oneStream({ label, below }) {
  const draw = drawer(label.map((field) => Buffer.from(field)));
  return below.map((n) => draw(n));
}

const { lists, streams } = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify({ lists: lists.map(oneList), streams: streams.map(oneStream) }));
