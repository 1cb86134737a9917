// Conversations as a JSON file. A file that is read may come from anywhere: every field is checked.
import { isPicture } from './pictures.ts'
import { newId } from './tree.ts'
import type { Candidate, Conversation, Failure, Figures, Message, Picture, Sampling, Token } from './types.ts'

const FORMAT = 'lapidary-conversations'
const VERSION = 1

export function exportText(conversations: Conversation[]): string {
  return `${JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1)}\n`
}

/** Where a file breaks the format, for the person who gave it. */
export class BadFile extends Error {}

const isObject = (v: unknown): v is Record<string, unknown> => typeof v === 'object' && v !== null && !Array.isArray(v)

/** Reads a file. Conversations get new ids, so that an import never replaces what is there. */
export function importText(text: string): Conversation[] {
  let file: unknown
  try {
    file = JSON.parse(text)
  } catch (e) {
    throw new BadFile(e instanceof Error ? e.message : String(e))
  }
  if (!isObject(file) || file.format !== FORMAT) throw new BadFile(`format: expected "${FORMAT}"`)
  if (file.version !== VERSION) throw new BadFile(`version: expected ${VERSION}, found ${JSON.stringify(file.version)}`)
  if (!Array.isArray(file.conversations)) throw new BadFile('conversations: expected a list')
  return file.conversations.map((c, i) => conversation(c, `conversations[${i}]`))
}

function conversation(v: unknown, at: string): Conversation {
  if (!isObject(v)) throw new BadFile(`${at}: expected an object`)
  if (!Array.isArray(v.messages)) throw new BadFile(`${at}.messages: expected a list`)
  const known = new Set<string>()
  const messages = v.messages.map((m, i) => {
    const read = message(m, `${at}.messages[${i}]`, known)
    known.add(read.id)
    return read
  })
  const chosen: Record<string, string> = {}
  if (isObject(v.chosen)) {
    for (const [parent, child] of Object.entries(v.chosen)) {
      if ((parent === '' || known.has(parent)) && known.has(String(child))) chosen[parent] = String(child)
    }
  }
  return {
    id: newId(),
    title: string(v.title, `${at}.title`),
    created: number(v.created, `${at}.created`),
    updated: number(v.updated, `${at}.updated`),
    system: string(v.system ?? '', `${at}.system`),
    model: string(v.model ?? '', `${at}.model`),
    sampling: sampling(v.sampling ?? {}, `${at}.sampling`),
    messages,
    chosen,
  }
}

/** Parents stand before their children, which also rules out cycles. */
function message(v: unknown, at: string, known: Set<string>): Message {
  if (!isObject(v)) throw new BadFile(`${at}: expected an object`)
  const id = string(v.id, `${at}.id`)
  if (id === '' || known.has(id)) throw new BadFile(`${at}.id: expected an id that no message before it has`)
  if (v.parent !== null && !known.has(String(v.parent))) throw new BadFile(`${at}.parent: no message before it has this id`)
  if (v.role !== 'user' && v.role !== 'assistant') throw new BadFile(`${at}.role: expected "user" or "assistant"`)
  const m: Message = {
    id,
    parent: v.parent as string | null,
    role: v.role,
    text: string(v.text, `${at}.text`),
    at: number(v.at, `${at}.at`),
  }
  if (typeof v.model === 'string') m.model = v.model
  if (typeof v.thought === 'string') m.thought = v.thought
  if (Array.isArray(v.pictures)) m.pictures = v.pictures.map((p, i) => picture(p, `${at}.pictures[${i}]`))
  if (typeof v.finish === 'string') m.finish = v.finish
  if (v.edited === true) m.edited = true
  if (Array.isArray(v.tokens)) m.tokens = v.tokens.map((t, i) => token(t, `${at}.tokens[${i}]`))
  if (v.failure !== undefined) m.failure = failure(v.failure, `${at}.failure`)
  if (isObject(v.figures)) m.figures = figures(v.figures, `${at}.figures`)
  return m
}

function picture(v: unknown, at: string): Picture {
  if (!isObject(v)) throw new BadFile(`${at}: expected an object`)
  const url = string(v.url, `${at}.url`)
  if (!isPicture(url)) throw new BadFile(`${at}.url: expected a PNG, JPEG or WebP picture as a data URL`)
  return { name: string(v.name, `${at}.name`), url }
}

const CODES: readonly string[] = ['network', 'broken', 'key', 'forbidden', 'missing', 'large', 'busy', 'refused', 'server', 'strange'] satisfies Failure['code'][]

function failure(v: unknown, at: string): Failure {
  if (!isObject(v) || !CODES.includes(String(v.code))) throw new BadFile(`${at}.code: not one of this page`)
  const out: Failure = { code: v.code as Failure['code'] }
  if (v.detail !== undefined) out.detail = string(v.detail, `${at}.detail`)
  if (v.retry !== undefined) out.retry = number(v.retry, `${at}.retry`)
  return out
}

function token(v: unknown, at: string): Token {
  if (!isObject(v) || !Array.isArray(v.others)) throw new BadFile(`${at}: expected text, logprob and others`)
  const others = v.others.map((o, i): Candidate => {
    if (!Array.isArray(o)) throw new BadFile(`${at}.others[${i}]: expected a text and a logprob`)
    return [string(o[0], `${at}.others[${i}]`), number(o[1], `${at}.others[${i}]`)]
  })
  return { text: string(v.text, `${at}.text`), logprob: number(v.logprob, `${at}.logprob`), others }
}

function figures(v: Record<string, unknown>, at: string): Figures {
  const out: Figures = { completion: number(v.completion, `${at}.completion`), span: number(v.span, `${at}.span`) }
  for (const key of ['prompt', 'cached', 'first', 'before'] as const) {
    if (v[key] !== undefined) out[key] = number(v[key], `${at}.${key}`)
  }
  return out
}

const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'frequency_penalty', 'presence_penalty'] as const

function sampling(v: unknown, at: string): Sampling {
  if (!isObject(v)) throw new BadFile(`${at}: expected an object`)
  const out: Sampling = {}
  for (const [key, value] of Object.entries(v)) {
    if (key === 'reasoning_effort' && (value === 'none' || value === 'medium')) out.reasoning_effort = value
    else if (key === 'stop' && Array.isArray(value)) out.stop = value.map((s) => string(s, `${at}.stop`))
    else if ((NUMBERS as readonly string[]).includes(key)) out[key as (typeof NUMBERS)[number]] = number(value, `${at}.${key}`)
    else throw new BadFile(`${at}.${key}: not a setting of this page`)
  }
  return out
}

function string(v: unknown, at: string): string {
  if (typeof v !== 'string') throw new BadFile(`${at}: expected a text`)
  return v
}

function number(v: unknown, at: string): number {
  if (typeof v !== 'number' || !Number.isFinite(v)) throw new BadFile(`${at}: expected a number`)
  return v
}
