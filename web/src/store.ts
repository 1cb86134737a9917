// The page's state, as signals, and everything that changes it.
import { computed, effect, signal, type Signal } from '@preact/signals'
import { chat, listModels, RequestFailed, type ChatRequest, type Model, type Piece, type Turn } from './api.ts'
import * as db from './db.ts'
import { language, preferred, type Language } from './i18n.ts'
import { add, change, fork, newId, path, titleOf, turn } from './tree.ts'
import { turnsFor } from './turns.ts'
import type { Candidate, Conversation, Failure, Figures, Message, Picture, Sampling, Summary, Token } from './types.ts'

// ---- what a person prefers, in localStorage -------------------------------------------------------

export type Theme = 'auto' | 'light' | 'dark'

function stored<T>(name: string, initial: T, valid: (v: unknown) => v is T): Signal<T> {
  let value = initial
  try {
    const found: unknown = JSON.parse(localStorage.getItem(`lapidary.${name}`) ?? 'null')
    if (valid(found)) value = found
  } catch {
    // Storage may be forbidden, or hold what another version wrote: the initial value does.
  }
  const s = signal(value)
  effect(() => {
    const text = JSON.stringify(s.value)
    try {
      localStorage.setItem(`lapidary.${name}`, text)
    } catch {
      // Then it holds until the page is closed.
    }
  })
  return s
}

const isText = (v: unknown): v is string => typeof v === 'string'

export const theme = stored<Theme>('theme', 'auto', (v): v is Theme => v === 'auto' || v === 'light' || v === 'dark')
/** How many alternatives to ask for with each token. */
export const alternatives = stored('alternatives', 5, (v): v is number => Number.isInteger(v) && Number(v) >= 0 && Number(v) <= 20)
const lastModel = stored('model', '', isText)
const keptKey = stored('key', '', isText)
const chosenLanguage = stored<Language | ''>('language', '', (v): v is Language | '' => v === 'en' || v === 'fr' || v === '')

effect(() => {
  language.value = chosenLanguage.value || preferred(navigator.languages)
  document.documentElement.lang = language.value
})
effect(() => {
  document.documentElement.dataset.theme = theme.value
})

export function setLanguage(l: Language) {
  chosenLanguage.value = l
}

/** From light to dark or back, whatever is seen now. */
export function flipTheme() {
  const dark = theme.value === 'dark' || (theme.value === 'auto' && matchMedia('(prefers-color-scheme: dark)').matches)
  theme.value = dark ? 'light' : 'dark'
}

// ---- the server: key and models -------------------------------------------------------------------

export const key = signal(keptKey.value)
/** True while the page asks for a key. */
export const asking = signal(false)
export const models = signal<Model[]>([])
export const modelsFailure = signal<Failure | null>(null)

export async function refreshModels(): Promise<void> {
  try {
    models.value = await listModels(key.value)
    modelsFailure.value = null
    asking.value = false
    const first = models.value[0]
    const c = current.value
    if (!c.model && first) update(c.id, (c) => ({ ...c, model: known(lastModel.value) ?? first.id }), c.messages.length > 0)
  } catch (e) {
    const failure = failureFrom(e)
    modelsFailure.value = failure
    if (failure.code === 'key') asking.value = true
  }
}

const known = (id: string) => models.value.find((m) => m.id === id)?.id

export function useKey(value: string, keep: boolean): Promise<void> {
  key.value = value
  keptKey.value = keep ? value : ''
  return refreshModels()
}

function failureFrom(e: unknown): Failure {
  if (e instanceof RequestFailed) return e.failure
  return { code: 'strange', detail: e instanceof Error ? e.message : String(e) }
}

// ---- conversations --------------------------------------------------------------------------------

export const summaries = signal<Summary[]>([])
/** Why the browser does not keep conversations; null while it does. */
export const storageFailure = signal<string | null>(null)

const held = new Map<string, Signal<Conversation>>()
const currentId = signal('')
export const current = computed(() => held.get(currentId.value)!.value)
export const shown = computed(() => path(current.value))

function blank(): Conversation {
  const now = Date.now()
  const like = held.get(currentId.peek())?.peek()
  return {
    id: newId(),
    title: '',
    created: now,
    updated: now,
    system: '',
    model: like?.model ?? known(lastModel.value) ?? models.value[0]?.id ?? '',
    sampling: like?.sampling ?? {},
    messages: [],
    chosen: {},
  }
}

function hold(c: Conversation): Conversation {
  held.set(c.id, signal(c))
  return c
}

function show(id: string) {
  currentId.value = id
  const saved = held.get(id)!.peek().messages.length > 0
  const hash = saved ? `#${id}` : '#'
  if (location.hash !== hash && !(hash === '#' && location.hash === '')) history.pushState(null, '', hash)
}

export function newConversation() {
  // One that is still empty serves as well.
  if (current.peek().messages.length === 0 && current.peek().system === '') return show(currentId.peek())
  show(hold(blank()).id)
}

export async function openConversation(id: string): Promise<boolean> {
  if (!held.has(id)) {
    const c = await db.load(id).catch(() => undefined)
    if (!c) return false
    hold(c)
  }
  show(id)
  return true
}

/** Changes a conversation and has it saved soon. */
export function update(id: string, f: (c: Conversation) => Conversation, keep = true) {
  const s = held.get(id)
  if (!s) return
  s.value = f(s.peek())
  if (keep) saveSoon(id)
}

const waiting = new Map<string, ReturnType<typeof setTimeout>>()

function saveSoon(id: string) {
  if (!waiting.has(id)) waiting.set(id, setTimeout(() => void saveNow(id), 400))
}

async function saveNow(id: string) {
  clearTimeout(waiting.get(id))
  waiting.delete(id)
  const c = held.get(id)?.peek()
  if (!c || (c.messages.length === 0 && c.system === '')) return
  list(db.summaryOf(c))
  try {
    await db.save(c)
    storageFailure.value = null
    channel?.postMessage(id)
  } catch (e) {
    storageFailure.value = e instanceof Error ? e.message || e.name : String(e)
  }
}

function list(one: Summary) {
  const rest = summaries.peek().filter((s) => s.id !== one.id)
  summaries.value = [one, ...rest].sort((a, b) => b.updated - a.updated)
}

/** Deletes, and gives the way back. */
export async function removeConversation(id: string): Promise<() => Promise<void>> {
  stop(id)
  const c = held.get(id)?.peek() ?? (await db.load(id))
  clearTimeout(waiting.get(id))
  waiting.delete(id)
  summaries.value = summaries.peek().filter((s) => s.id !== id)
  if (currentId.peek() === id) show(hold(blank()).id)
  held.delete(id)
  await db.remove(id).catch(() => {})
  channel?.postMessage(id)
  return async () => {
    if (!c) return
    hold(c)
    await saveNow(id)
    show(id)
  }
}

export function rename(id: string, title: string) {
  update(id, (c) => ({ ...c, title: title.trim() || titleOf(c.messages[0]?.text ?? '') }))
  void saveNow(id)
}

/** Puts conversations from a file beside those that are there. */
export async function takeIn(conversations: Conversation[]) {
  await db.save(...conversations)
  summaries.value = await db.list()
  const first = conversations[0]
  if (first) await openConversation(first.id)
}

// ---- tabs: what one saves, the others show --------------------------------------------------------

const channel = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel('lapidary')
if (channel) {
  channel.onmessage = async ({ data: id }) => {
    summaries.value = await db.list().catch(() => summaries.peek())
    const s = held.get(id)
    if (!s || runs.peek()[id] || waiting.has(id)) return
    const c = await db.load(id).catch(() => undefined)
    if (c) s.value = c
  }
}

// ---- talking --------------------------------------------------------------------------------------

interface Run {
  message: string
  abort: AbortController
}

/** The answers under way, by conversation. */
export const runs = signal<Record<string, Run>>({})
export const running = computed(() => runs.value[currentId.value] ?? null)

const leaf = () => shown.peek().at(-1) ?? null

/** Adds a message of the person under `parent`, and has it answered. */
function say(parent: string | null, text: string, pictures: Picture[]) {
  const c = current.peek()
  const message: Message = { id: newId(), parent, role: 'user', text, at: Date.now() }
  if (pictures.length > 0) message.pictures = pictures
  update(c.id, (c) => ({ ...add(c, message), title: c.title || titleOf(text || pictures[0]?.name || '') }))
  show(c.id)
  respond(c.id, message.id)
}

export function send(text: string, pictures: Picture[] = []) {
  if (!running.peek() && (text.trim() || pictures.length > 0)) say(leaf()?.id ?? null, text, pictures)
}

/** Whether pictures can be shown to the model of this conversation. */
export const sees = computed(() => models.value.find((m) => m.id === current.value.model)?.vision === true)

/** Whether the model of this conversation can think apart from its answer. */
export const thinks = computed(() => models.value.find((m) => m.id === current.value.model)?.thinking === true)

/** An edited message becomes a sibling; a person's own is answered anew. */
export function edit(m: Message, text: string) {
  if (running.peek()) return
  if (m.role === 'user') return say(m.parent, text, m.pictures ?? [])
  const { tokens: _, figures: __, failure: ___, ...rest } = m
  const copy: Message = { ...rest, id: newId(), text, at: Date.now(), finish: 'stop', edited: true }
  update(current.peek().id, (c) => add(c, copy))
}

/** Another answer beside `m`; one that failed before its first word is replaced. */
export function regenerate(m: Message) {
  if (running.peek() || m.role !== 'assistant' || m.parent === null) return
  const { id } = current.peek()
  if (m.failure && m.text === '') void answer(id, m.id)
  else respond(id, m.parent)
}

function respond(id: string, parent: string, begun: Begun = NOTHING) {
  const message: Message = { id: newId(), parent, role: 'assistant', text: begun.text, at: Date.now() }
  if (begun.thought) message.thought = begun.thought
  update(id, (c) => add(c, message))
  void answer(id, message.id, begun)
}

/** Goes on with an answer that ended too early. */
export function goOn(m: Message) {
  if (running.peek() || m.role !== 'assistant' || m.text === '') return
  const before = (m.figures?.completion ?? 0) + (m.figures?.before ?? 0)
  void answer(current.peek().id, m.id, { text: m.text, thought: m.thought ?? '', tokens: m.tokens, before })
}

/** Another answer, that is the same up to a token, and there takes one of the alternatives. */
export function takeAlternative(m: Message, at: number, [text, logprob]: Candidate) {
  const token = m.tokens?.[at]
  if (running.peek() || !token || m.parent === null) return
  const tokens = [...m.tokens!.slice(0, at), { ...token, text, logprob }]
  respond(current.peek().id, m.parent, { text: tokens.map((t) => t.text).join(''), thought: m.thought ?? '', tokens, before: tokens.length })
}

/** What stands there of an answer when the model is to go on with it. */
interface Begun {
  text: string
  thought: string
  tokens: Token[] | undefined
  before: number
}

const NOTHING: Begun = { text: '', thought: '', tokens: [], before: 0 }

export function stop(id = currentId.peek()) {
  runs.peek()[id]?.abort.abort()
}

export function showSibling(m: Message, step: number) {
  if (!running.peek()) update(current.peek().id, (c) => turn(c, m.id, step))
}

/** Takes the branch that ends with `m` into a conversation of its own. */
export function forkAt(m: Message) {
  const copy = hold(fork(current.peek(), m.id, Date.now()))
  void saveNow(copy.id)
  show(copy.id)
}

/** Streams an answer into a message that is there already; what is begun goes along as the last turn. */
async function answer(id: string, messageId: string, begun: Begun = NOTHING) {
  const abort = new AbortController()
  runs.value = { ...runs.peek(), [id]: { message: messageId, abort } }
  const c = held.get(id)!.peek()
  lastModel.value = c.model
  const turns = turnsFor(c, messageId)
  const last: Turn = { role: 'assistant', content: begun.text }
  if (begun.thought) last.reasoning_content = begun.thought
  const { reasoning_effort: _effort, ...others } = c.sampling
  const request: ChatRequest = {
    model: c.model,
    messages: begun.text === '' ? turns : [...turns, last],
    sampling: thinks.peek() ? c.sampling : others,
    alternatives: alternatives.peek(),
  }
  const intake = new Intake(begun)
  const put = (more: Partial<Message>) => update(id, (c) => change(c, messageId, { ...intake.fields(), ...more }))
  put({ model: c.model, failure: undefined, finish: undefined })
  let timer: ReturnType<typeof setTimeout> | undefined
  try {
    for await (const piece of chat(request, key.peek(), abort.signal)) {
      intake.take(piece)
      // The page is drawn at most every 40 ms, however fast the tokens come.
      timer ??= setTimeout(() => ((timer = undefined), put({})), 40)
    }
    put({ finish: intake.finish ?? 'stop' })
  } catch (e) {
    if (abort.signal.aborted) put({ finish: 'stopped' })
    else put({ failure: failureFrom(e) })
    if (!abort.signal.aborted && failureFrom(e).code === 'key') asking.value = true
  } finally {
    clearTimeout(timer)
    const { [id]: _, ...rest } = runs.peek()
    runs.value = rest
    void saveNow(id)
  }
}

/** Gathers the pieces of one answer and measures it. */
class Intake {
  finish: string | undefined
  private text: string
  private thought: string
  /** Undefined when the beginning has none: half of the tokens would be no view of the answer. */
  private tokens: Token[] | undefined
  private readonly before: number
  private count = 0
  private pieces = 0
  private usage: Piece['usage']
  private readonly start = performance.now()
  private first: number | undefined
  private last = 0

  constructor(begun: Begun) {
    this.text = begun.text
    this.thought = begun.thought
    this.tokens = begun.tokens && [...begun.tokens]
    this.before = begun.before
  }

  take(piece: Piece) {
    if (piece.text || piece.thought || piece.tokens?.length) {
      this.last = performance.now()
      this.first ??= this.last
      this.pieces += 1
    }
    this.text += piece.text ?? ''
    this.thought += piece.thought ?? ''
    this.count += piece.tokens?.length ?? 0
    if (piece.tokens) this.tokens?.push(...piece.tokens)
    this.usage = piece.usage ?? this.usage
    this.finish = piece.finish ?? this.finish
  }

  fields(): Partial<Message> {
    const figures: Figures = {
      completion: this.usage?.completion ?? (this.count || this.pieces),
      span: this.first === undefined ? 0 : this.last - this.first,
    }
    if (this.first !== undefined) figures.first = this.first - this.start
    if (this.usage) figures.prompt = this.usage.prompt
    if (this.usage?.cached) figures.cached = this.usage.cached
    if (this.before > 0) figures.before = this.before
    const thought = this.thought || undefined
    return { text: this.text, thought, figures, tokens: this.tokens?.length ? this.tokens.slice() : undefined }
  }
}

export function setSampling(sampling: Sampling) {
  update(current.peek().id, (c) => ({ ...c, sampling }), current.peek().messages.length > 0)
}

export function setSystem(system: string) {
  update(current.peek().id, (c) => ({ ...c, system }), current.peek().messages.length > 0)
}

export function setModel(model: string) {
  lastModel.value = model
  update(current.peek().id, (c) => ({ ...c, model }), current.peek().messages.length > 0)
}

// ---- beginning ------------------------------------------------------------------------------------

currentId.value = hold(blank()).id

async function follow() {
  const id = location.hash.slice(1)
  if (id === '' || !(await openConversation(id))) newConversation()
}

export async function begin() {
  void refreshModels()
  try {
    summaries.value = await db.list()
  } catch (e) {
    storageFailure.value = e instanceof Error ? e.message || e.name : String(e)
  }
  await follow()
  addEventListener('popstate', () => void follow())
  addEventListener('pagehide', () => [...waiting.keys()].forEach((id) => void saveNow(id)))
  addEventListener('focus', () => modelsFailure.peek() && !asking.peek() && void refreshModels())
}
