import { expect, test } from 'vitest'
import { EventParser } from '../src/sse.ts'

const whole = ': hello\n\ndata: {"a":1}\n\nevent: error\r\ndata: one\r\ndata: two\r\n\r\ndata:x\rdata\r\rid: 7\nretry: 10\n\ndata: é😀\n\n'
const events = [
  { event: 'message', data: '{"a":1}' },
  { event: 'error', data: 'one\ntwo' },
  { event: 'message', data: 'x\n' },
  { event: 'message', data: 'é😀' },
]

test('an event stream in one piece', () => {
  expect(new EventParser().push(whole)).toEqual(events)
})

test('the same events however the text is cut', () => {
  for (let cut = 1; cut < whole.length; cut++) {
    for (const size of [cut, 1, 3]) {
      const parser = new EventParser()
      const got = []
      for (let i = 0; i < whole.length; i += size) got.push(...parser.push(whole.slice(i, i + size)))
      expect(got).toEqual(events)
      if (size !== cut) break
    }
  }
})

test('an event that is not finished is not given', () => {
  const parser = new EventParser()
  expect(parser.push('data: [DONE]\n')).toEqual([])
  expect(parser.push('\n')).toEqual([{ event: 'message', data: '[DONE]' }])
})

test('a byte order mark at the head is no part of the first field', () => {
  expect(new EventParser().push('\uFEFFdata: 1\n\n')).toEqual([{ event: 'message', data: '1' }])
})
