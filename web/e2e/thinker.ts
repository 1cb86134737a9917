// A model that thinks apart from its answer, made from the reference's tiny Gemma 4: the embeddings of
// the markers around thoughts and of line ends, which are the output's rows too, are made longer, and
// turned around where that is what they need to come first (as in crates/server/tests/thoughts.rs).
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const FACTORS = new Map([[18, -5], [19, 5], [22, -5]])
const EMBEDDING = 'model.language_model.embed_tokens.weight'

/** Writes it into a new folder, whose path this gives. */
export function makeThinker(fixture: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'lapidary-thinker-'))
  for (const name of readdirSync(fixture)) {
    if (/\.(json|jinja)$/.test(name)) copyFileSync(join(fixture, name), join(folder, name))
  }
  writeFileSync(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: [1, 21], repetition_penalty: 3 }))
  const bytes = readFileSync(join(fixture, 'model.safetensors'))
  const head = Number(bytes.readBigUInt64LE(0))
  const { dtype, shape, data_offsets: [start] } = JSON.parse(bytes.toString('utf8', 8, 8 + head))[EMBEDDING]
  if (dtype !== 'F32') throw new Error(`${EMBEDDING}: expected F32, found ${dtype}`)
  for (const [id, factor] of FACTORS) {
    for (let i = 0; i < shape[1]; i++) {
      const at = 8 + head + start + 4 * (id * shape[1] + i)
      bytes.writeFloatLE(bytes.readFloatLE(at) * factor, at)
    }
  }
  writeFileSync(join(folder, 'model.safetensors'), bytes)
  return folder
}
