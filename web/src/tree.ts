// A conversation is a tree: to edit or to regenerate adds a sibling and chooses it, nothing is lost.
// All functions return new values and leave their arguments as they are.
import type { Conversation, Message } from './types.ts'

/** An id of 128 random bits. `crypto.randomUUID` is missing where the page has no TLS. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('')
}

const slot = (parent: string | null) => parent ?? ''

/** The alternatives below `parent`, oldest first. */
export function children(c: Conversation, parent: string | null): Message[] {
  return c.messages.filter((m) => m.parent === parent)
}

/** The messages that are shown, from the head to the last. */
export function path(c: Conversation): Message[] {
  const below = new Map<string, Message[]>()
  for (const m of c.messages) {
    const key = slot(m.parent)
    const list = below.get(key)
    if (list) list.push(m)
    else below.set(key, [m])
  }
  const shown: Message[] = []
  let key = ''
  // A message is shown once at most, so a cycle in a damaged file can't hold us.
  while (shown.length <= c.messages.length) {
    const list = below.get(key)
    if (!list) break
    const next = list.find((m) => m.id === c.chosen[key]) ?? list[list.length - 1]!
    shown.push(next)
    key = next.id
  }
  return shown
}

/** The messages before `id` on its own branch, oldest first. */
export function before(c: Conversation, id: string): Message[] {
  const byId = new Map(c.messages.map((m) => [m.id, m]))
  const chain: Message[] = []
  let at = byId.get(id)?.parent ?? null
  while (at !== null && chain.length < c.messages.length) {
    const m = byId.get(at)
    if (!m) break
    chain.unshift(m)
    at = m.parent
  }
  return chain
}

/** Adds a message and shows it. */
export function add(c: Conversation, m: Message): Conversation {
  return {
    ...c,
    messages: [...c.messages, m],
    chosen: { ...c.chosen, [slot(m.parent)]: m.id },
    updated: Math.max(c.updated, m.at),
  }
}

/** Replaces fields of one message. */
export function change(c: Conversation, id: string, fields: Partial<Message>): Conversation {
  return { ...c, messages: c.messages.map((m) => (m.id === id ? { ...m, ...fields } : m)) }
}

/** Shows the alternative that stands `step` places after `id`; the ends are firm. */
export function turn(c: Conversation, id: string, step: number): Conversation {
  const m = c.messages.find((m) => m.id === id)
  if (!m) return c
  const list = children(c, m.parent)
  const next = list[list.indexOf(m) + step]
  return next ? { ...c, chosen: { ...c.chosen, [slot(m.parent)]: next.id } } : c
}

/** A copy that ends with `id`: the one branch, under new ids. */
export function fork(c: Conversation, id: string, now: number): Conversation {
  const own = c.messages.find((m) => m.id === id)
  const line = own ? [...before(c, id), own] : []
  const chosen: Record<string, string> = {}
  const messages: Message[] = []
  let parent: string | null = null
  for (const m of line) {
    const copy: Message = { ...m, id: newId(), parent }
    chosen[slot(parent)] = copy.id
    messages.push(copy)
    parent = copy.id
  }
  return { ...c, id: newId(), messages, chosen, created: now, updated: now }
}

/** A title from the first words of the first message. */
export function titleOf(text: string): string {
  const line = text.trim().replace(/\s+/g, ' ')
  if (line.length <= 60) return line
  const cut = line.slice(0, 60)
  const space = cut.lastIndexOf(' ')
  return `${space > 30 ? cut.slice(0, space) : cut}…`
}
