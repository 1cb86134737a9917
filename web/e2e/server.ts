// Starts `lapidary serve` with the built-in model, twice: open, and with a key; and once with a model
// that sees, if the reference fixtures are beside the repository.
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { resolve } from 'node:path'

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
  const folders = ['../..', '../../..'].map((up) => resolve(import.meta.dirname ?? '.', up, '../shared/fixtures/models/gemma3'))
  const fixture = folders.find((f) => existsSync(f))
  const eyes = fixture ? await serve('--model', `eyes=${fixture}`) : undefined
  if (eyes) process.env.PAGE_EYES_URL = eyes[1]
  process.env.PAGE_URL = openUrl
  process.env.PAGE_KEYED_URL = keyedUrl
  return () => {
    open.kill()
    keyed.kill()
    eyes?.[0].kill()
  }
}
