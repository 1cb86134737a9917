// A branch of a conversation as the server gets it.
import type { Part, Turn } from './api.ts'
import { before } from './tree.ts'
import type { Conversation, Message } from './types.ts'

/**
 * The turns as the model gets them. An answer that failed before its first word is left out, and turns
 * of one side that then meet become one: many templates want the sides to alternate.
 */
export function turnsFor(c: Conversation, answer: string): Turn[] {
  const turns: Turn[] = []
  for (const m of before(c, answer)) {
    if (m.text === '' && !m.pictures?.length) continue
    const last = turns.at(-1)
    if (last?.role === m.role) last.content = joined(last.content, contentOf(m))
    else turns.push({ role: m.role, content: contentOf(m) })
  }
  return c.system.trim() ? [{ role: 'system', content: c.system }, ...turns] : turns
}

/** Text, or pictures and then text. */
function contentOf(m: Message): Turn['content'] {
  if (!m.pictures?.length) return m.text
  const shown: Part[] = m.pictures.map((p) => ({ type: 'image_url', image_url: { url: p.url } }))
  return m.text === '' ? shown : [...shown, { type: 'text', text: m.text }]
}

function joined(a: Turn['content'], b: Turn['content']): Turn['content'] {
  if (typeof a === 'string' && typeof b === 'string') return `${a}\n\n${b}`
  const parts = (content: Turn['content']): Part[] => (typeof content === 'string' ? [{ type: 'text', text: content }] : content)
  return [...parts(a), { type: 'text', text: '\n\n' }, ...parts(b)]
}
