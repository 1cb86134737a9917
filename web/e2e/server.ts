// Starts `lapidary serve` with the built-in model, twice: open, and with a key; and once each with a model
// that sees and with one that thinks, if the reference fixtures are beside the repository.
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, rmSync } from 'node:fs'
import { resolve } from 'node:path'
import { makeThinker } from './thinker.ts'

const program = resolve(import.meta.dirname ?? '.', '../..', process.env.LAPIDARY ?? 'target/release/lapidary')
export const KEY = 'a-key-for-the-browser-test'

function serve(...flags: string[]): Promise<[ChildProcess, string]> {
  const child = spawn(program, ['serve', '--listen', '127.0.0.1:0', ...flags], { stdio: ['ignore', 'pipe', 'pipe'] })
  return new Promise((found, failed) => {
    let output = ''
    const take = (piece: Buffer) => {
      output += piece
      const url = /http:\/\/127[^\s]*/.exec(output)
      if (url) found([child, url[0]])
    }
    child.stdout!.on('data', take)
    child.stderr!.on('data', (piece) => (output += piece))
    child.on('exit', () => failed(new Error(`lapidary serve ended:\n${output}`)))
  })
}

export default async function start() {
  if (!existsSync(program)) throw new Error(`${program} is not there: cargo build --release`)
  const [open, openUrl] = await serve()
  const [keyed, keyedUrl] = await serve('--api-key', KEY)
  const folders = ['../..', '../../..'].map((up) => resolve(import.meta.dirname ?? '.', up, '../shared/fixtures/models'))
  const fixtures = folders.find((f) => existsSync(f))
  const eyes = fixtures ? await serve('--model', `eyes=${fixtures}/gemma3`) : undefined
  const thinker = fixtures ? makeThinker(`${fixtures}/gemma4_e2b`) : undefined
  const thinks = thinker ? await serve('--model', `thinker=${thinker}`, '--precision', 'exact') : undefined
  if (eyes) process.env.PAGE_EYES_URL = eyes[1]
  if (thinks) process.env.PAGE_THINKS_URL = thinks[1]
  process.env.PAGE_URL = openUrl
  process.env.PAGE_KEYED_URL = keyedUrl
  return () => {
    open.kill()
    keyed.kill()
    eyes?.[0].kill()
    thinks?.[0].kill()
    if (thinker) rmSync(thinker, { recursive: true })
  }
}
