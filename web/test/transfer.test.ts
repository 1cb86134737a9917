import { expect, test } from 'vitest'
import { BadFile, exportText, importText } from '../src/transfer.ts'
import type { Conversation } from '../src/types.ts'

const conversation: Conversation = {
  id: 'c', title: 'T', created: 1, updated: 2, system: 's', model: 'm', sampling: { temperature: 0.5, stop: ['\n'], reasoning_effort: 'medium' },
  messages: [
    { id: 'q', parent: null, role: 'user', text: 'hi', at: 1 },
    { id: 'a', parent: 'q', role: 'assistant', text: 'ho', thought: 'well', at: 2, model: 'm', finish: 'stop',
      tokens: [{ text: 'ho', logprob: -0.1, others: [['ho', -0.1], ['hi', -3]] }],
      figures: { prompt: 4, completion: 1, first: 20, span: 0 } },
  ],
  chosen: { '': 'q', q: 'a' },
}

test('what is exported comes back whole, under a new id', () => {
  const [back] = importText(exportText([conversation]))
  expect(back!.id).not.toBe('c')
  expect({ ...back, id: 'c' }).toEqual(conversation)
})

test('the failure of an answer comes back', () => {
  const failed = { ...conversation, messages: [conversation.messages[0]!, { ...conversation.messages[1]!, failure: { code: 'busy' as const, detail: 'd', retry: 3 } }] }
  expect(importText(exportText([failed]))[0]!.messages[1]!.failure).toEqual({ code: 'busy', detail: 'd', retry: 3 })
})

test('every broken file is refused by its field', () => {
  const broken = (f: (c: any) => void) => {
    const file = JSON.parse(exportText([conversation]))
    f(file)
    return () => importText(JSON.stringify(file))
  }
  expect(() => importText('{')).toThrow(BadFile)
  expect(() => importText('[]')).toThrow('format')
  expect(broken((f) => (f.version = 2))).toThrow('version')
  expect(broken((f) => (f.conversations = {}))).toThrow('conversations')
  expect(broken((f) => delete f.conversations[0].title)).toThrow('conversations[0].title')
  expect(broken((f) => (f.conversations[0].messages[1].parent = 'nobody'))).toThrow('messages[1].parent')
  expect(broken((f) => (f.conversations[0].messages[1].id = 'q'))).toThrow('messages[1].id')
  expect(broken((f) => (f.conversations[0].messages[0].parent = 'a'))).toThrow('messages[0].parent')
  expect(broken((f) => (f.conversations[0].messages[0].role = 'system'))).toThrow('messages[0].role')
  expect(broken((f) => (f.conversations[0].messages[1].tokens[0].others[1][1] = 'x'))).toThrow('tokens[0].others[1]')
  expect(broken((f) => (f.conversations[0].sampling.tools = []))).toThrow('sampling.tools')
  expect(broken((f) => (f.conversations[0].sampling.reasoning_effort = 'much'))).toThrow('sampling.reasoning_effort')
  expect(broken((f) => (f.conversations[0].updated = null))).toThrow('conversations[0].updated')
})

test('a choice of a message that is not there is left out', () => {
  const file = JSON.parse(exportText([conversation]))
  file.conversations[0].chosen = { '': 'q', q: 'gone', gone: 'a', __proto__: 'a' }
  expect(importText(JSON.stringify(file))[0]!.chosen).toEqual({ '': 'q' })
})
