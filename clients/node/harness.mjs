// Runs cases against the server that LAPIDARY_URL names, and prints a line for each.
import assert from 'node:assert/strict'

const { LAPIDARY_URL, LAPIDARY_KEYED_URL, LAPIDARY_KEY, LAPIDARY_MODEL } = process.env
export const URL = LAPIDARY_URL
export const KEYED_URL = LAPIDARY_KEYED_URL
export const KEY = LAPIDARY_KEY
export const MODEL = LAPIDARY_MODEL
export const ABSENT = 'no-such-model'
export { assert }

/** The error that a promise ends with; it must be of the class `kind` and have the status `status`. */
export async function refused(kind, status, promise) {
  const error = await promise.then(() => null, (e) => e)
  assert.ok(error instanceof kind, `${kind.name} was expected, and there is ${error}`)
  assert.equal(error.status, status, String(error))
  return error
}

/** Checks that a vector has length 1. */
export function unit(vector) {
  const square = vector.reduce((sum, x) => sum + x * x, 0)
  assert.ok(Math.abs(square - 1) < 1e-3, `length² ${square}`)
}

/** Runs cases one after the other; the exit code says whether all passed. */
export async function main(client, cases) {
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run()
      console.log(`passed  ${client}: ${name}`)
    } catch (e) {
      process.exitCode = 1
      console.log(`FAILED  ${client}: ${name}\n${e.stack}`)
    }
  }
}
