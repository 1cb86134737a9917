// Compresses what Vite built into `packed/`, which the server's binary holds and git keeps; with
// `--verify`, compares instead and fails when the source would give other bytes.
// fflate is plain JavaScript, so that the bytes are the same on every machine.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { gzipSync } from 'fflate'

const from = new URL('../dist/', import.meta.url)
const to = new URL('../packed/', import.meta.url)

const built = new Map(
  readdirSync(from).sort().map((name) => [`${name}.gz`, gzipSync(readFileSync(new URL(name, from)), { level: 9, mtime: 0 })]),
)

if (process.argv.includes('--verify')) verify()
else write()

function write() {
  rmSync(to, { recursive: true, force: true })
  mkdirSync(to)
  for (const [name, bytes] of built) writeFileSync(new URL(name, to), bytes)
  const total = [...built.values()].reduce((sum, b) => sum + b.length, 0)
  console.log(`packed ${built.size} files, ${total} bytes`)
}

function verify() {
  const kept = readdirSync(to).sort()
  const differ = [...new Set([...kept, ...built.keys()])].filter((name) => {
    const bytes = built.get(name)
    return !bytes || !kept.includes(name) || !readFileSync(new URL(name, to)).equals(bytes)
  })
  if (differ.length > 0) {
    console.error(`web/packed does not match the source: ${differ.join(', ')}. Run "npm run build" in web/ and commit.`)
    process.exit(1)
  }
  console.log(`web/packed matches the source: ${kept.join(', ')}`)
}
