import { expect, test } from 'vitest'
import { add, before, change, children, fork, newId, path, titleOf, turn } from '../src/tree.ts'
import type { Conversation, Message } from '../src/types.ts'

const empty: Conversation = {
  id: 'c', title: '', created: 0, updated: 0, system: '', model: '', sampling: {}, messages: [], chosen: {},
}
const message = (id: string, parent: string | null, role: Message['role'] = 'user'): Message => ({ id, parent, role, text: id, at: 1 })
const grown = (...list: [string, string | null][]) => list.reduce((c, [id, parent]) => add(c, message(id, parent)), empty)
const ids = (list: Message[]) => list.map((m) => m.id).join(' ')

test('the path follows what was added last', () => {
  const c = grown(['q1', null], ['a1', 'q1'], ['q2', 'a1'], ['a2', 'q2'])
  expect(ids(path(c))).toBe('q1 a1 q2 a2')
})

test('an edit makes a branch, and turning back shows the old one whole', () => {
  const c = grown(['q1', null], ['a1', 'q1'], ['q2', 'a1'], ['a2', 'q2'], ['q2b', 'a1'], ['a2b', 'q2b'])
  expect(ids(path(c))).toBe('q1 a1 q2b a2b')
  expect(ids(children(c, 'a1'))).toBe('q2 q2b')
  const back = turn(c, 'q2b', -1)
  expect(ids(path(back))).toBe('q1 a1 q2 a2')
  expect(ids(path(turn(back, 'q2', 1)))).toBe('q1 a1 q2b a2b')
  expect(turn(back, 'q2', -1)).toBe(back)
  expect(ids(path(c))).toBe('q1 a1 q2b a2b')
})

test('the head can have alternatives too', () => {
  const c = grown(['q1', null], ['a1', 'q1'], ['q1b', null])
  expect(ids(path(c))).toBe('q1b')
  expect(ids(path(turn(c, 'q1b', -1)))).toBe('q1 a1')
})

test('what stands before a message is its own branch', () => {
  const c = grown(['q1', null], ['a1', 'q1'], ['a1b', 'q1'], ['q2', 'a1'])
  expect(ids(before(c, 'q2'))).toBe('q1 a1')
  expect(ids(before(c, 'q1'))).toBe('')
  expect(ids(before(c, 'nobody'))).toBe('')
})

test('a fork holds the one branch under new ids and leaves the first alone', () => {
  const c = grown(['q1', null], ['a1', 'q1'], ['a1b', 'q1'], ['q2', 'a1b'])
  const f = fork(c, 'a1', 9)
  expect(path(f).map((m) => m.text)).toEqual(['q1', 'a1'])
  expect(f.messages).toHaveLength(2)
  expect(f.messages.some((m) => c.messages.some((o) => o.id === m.id))).toBe(false)
  expect(f.id).not.toBe(c.id)
  expect(c.messages).toHaveLength(4)
})

test('a change touches one message and no other object', () => {
  const c = grown(['q1', null], ['a1', 'q1'])
  const d = change(c, 'a1', { text: 'new' })
  expect(d.messages[0]).toBe(c.messages[0])
  expect(d.messages[1]!.text).toBe('new')
  expect(c.messages[1]!.text).toBe('a1')
})

test('a cycle in a damaged conversation ends', () => {
  const c = { ...empty, messages: [message('a', 'b'), message('b', 'a')] }
  expect(path(c)).toEqual([])
  expect(before(c, 'a').length).toBeLessThanOrEqual(2)
})

test('ids differ, titles are short', () => {
  expect(new Set(Array.from({ length: 1000 }, newId)).size).toBe(1000)
  expect(titleOf('  Two\n words ')).toBe('Two words')
  expect(titleOf('word '.repeat(30)).length).toBeLessThanOrEqual(61)
  expect(titleOf('x'.repeat(100))).toBe(`${'x'.repeat(60)}…`)
})
