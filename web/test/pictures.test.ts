import { expect, test } from 'vitest'
import { fit, isPicture } from '../src/pictures.ts'
import { BadFile, exportText, importText } from '../src/transfer.ts'
import { turnsFor } from '../src/turns.ts'
import type { Conversation, Message } from '../src/types.ts'

const cat = { name: 'cat.png', url: 'data:image/png;base64,Zm9v' }
const dog = { name: 'dog.jpg', url: 'data:image/jpeg;base64,Zg==' }
const part = (p: { url: string }) => ({ type: 'image_url', image_url: { url: p.url } })
const text = (t: string) => ({ type: 'text', text: t })

function conversation(...messages: Partial<Message>[]): Conversation {
  const whole = messages.map((m, i): Message => ({ id: `${i}`, parent: i > 0 ? `${i - 1}` : null, role: i % 2 ? 'assistant' : 'user', text: '', at: i, ...m }))
  return { id: 'c', title: '', created: 0, updated: 0, system: '', model: 'm', sampling: {}, messages: whole, chosen: {} }
}

test('pictures go before their words, and text alone stays a string', () => {
  const c = conversation({ text: 'What is this?', pictures: [cat, dog] }, { text: 'A cat.' }, { text: 'Sure?' }, {})
  expect(turnsFor(c, '3')).toEqual([
    { role: 'user', content: [part(cat), part(dog), text('What is this?')] },
    { role: 'assistant', content: 'A cat.' },
    { role: 'user', content: 'Sure?' },
  ])
})

test('a picture without words is a turn, and turns that meet become one', () => {
  const c = conversation({ pictures: [cat] }, {}, { text: 'And?' }, {}, { pictures: [dog], text: 'this?' }, {})
  expect(turnsFor(c, '5')).toEqual([{ role: 'user', content: [part(cat), text('\n\n'), text('And?'), text('\n\n'), part(dog), text('this?')] }])
  const words = conversation({ text: 'a' }, {}, { text: 'b' }, {})
  expect(turnsFor(words, '3')).toEqual([{ role: 'user', content: 'a\n\nb' }])
})

test('pictures are exported and come back; what is none is refused by its field', () => {
  const c = conversation({ text: 'x', pictures: [cat, dog] })
  expect(importText(exportText([c]))[0]!.messages[0]!.pictures).toEqual([cat, dog])
  for (const url of ['https://example.org/a.png', 'data:text/html;base64,Zm9v', 'data:image/svg+xml;base64,Zm9v', 'data:image/png;base64,<b>', 5]) {
    const bad = exportText([c]).replace(JSON.stringify(cat.url), JSON.stringify(url))
    expect(() => importText(bad)).toThrow(BadFile)
    expect(() => importText(bad)).toThrow('conversations[0].messages[0].pictures[0].url')
  }
})

test('a large picture is drawn smaller in its own shape', () => {
  expect(fit(4000, 3000)).toEqual([1600, 1200])
  expect(fit(10, 100_000)).toEqual([1, 1600])
  expect(fit(640, 480)).toEqual([640, 480])
  expect(isPicture(cat.url)).toBe(true)
})
