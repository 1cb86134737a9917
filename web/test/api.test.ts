import { afterEach, expect, test, vi } from 'vitest'
import { bodyOf, chat, failureOf, listModels, pieceOf, RequestFailed, type Piece } from '../src/api.ts'

afterEach(() => vi.unstubAllGlobals())

const request = { model: 'm', messages: [{ role: 'user', content: 'hi' }], sampling: {}, alternatives: 0 }
const stream = (text: string) => new Response(text, { headers: { 'content-type': 'text/event-stream; charset=utf-8' } })
const answering = (response: () => Response) => vi.stubGlobal('fetch', vi.fn(async () => response()))

async function all(): Promise<Piece[]> {
  const pieces: Piece[] = []
  for await (const piece of chat(request, '', new AbortController().signal)) pieces.push(piece)
  return pieces
}

const failure = async (work: Promise<unknown>) => {
  const e = await work.then(() => null, (e) => e)
  expect(e).toBeInstanceOf(RequestFailed)
  return (e as RequestFailed).failure
}

test('only settings that are set are sent', () => {
  expect(bodyOf({ ...request, sampling: { temperature: 0, stop: ['\n'] } })).toEqual({
    model: 'm', messages: request.messages, stream: true, stream_options: { include_usage: true }, temperature: 0, stop: ['\n'],
  })
  expect(bodyOf({ ...request, alternatives: 3 })).toMatchObject({ logprobs: true, top_logprobs: 3 })
})

test('a stream is read to its end', async () => {
  answering(() => stream('data: {"choices":[{"delta":{"reasoning_content":"W"}}]}\n\ndata: {"choices":[{"delta":{"content":"A"}}]}\n\n: waiting\n\ndata: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}\n\ndata: [DONE]\n\n'))
  expect(await all()).toEqual([{ thought: 'W' }, { text: 'A' }, { finish: 'length' }, { usage: { prompt: 3, completion: 1, cached: 2 } }])
})

test('a stream that ends early is broken', async () => {
  answering(() => stream('data: {"choices":[{"delta":{"content":"A"}}]}\n\n'))
  expect(await failure(all())).toEqual({ code: 'broken' })
})

test('an error inside a stream is told with its words', async () => {
  answering(() => stream('data: {"error":{"message":"the engine stopped"}}\n\n'))
  expect(await failure(all())).toEqual({ code: 'server', detail: 'the engine stopped' })
})

test('no server, and what is no event stream', async () => {
  vi.stubGlobal('fetch', vi.fn(async () => Promise.reject(new TypeError('failed'))))
  expect(await failure(all())).toEqual({ code: 'network' })
  answering(() => new Response('<html>hello</html>', { headers: { 'content-type': 'text/html' } }))
  expect(await failure(all())).toEqual({ code: 'strange' })
  expect(await failure(listModels(''))).toEqual({ code: 'strange' })
})

test('each refusal has its meaning', async () => {
  const of = (status: number, body = '{"error":{"message":"m"}}', headers = {}) => failureOf(new Response(body, { status, headers }))
  expect(await of(400)).toEqual({ code: 'refused', detail: 'm' })
  expect((await of(401)).code).toBe('key')
  expect((await of(403)).code).toBe('forbidden')
  expect((await of(404)).code).toBe('missing')
  expect((await of(413)).code).toBe('large')
  expect(await of(429, '{"error":"slow down"}', { 'retry-after': '7' })).toEqual({ code: 'busy', detail: 'slow down', retry: 7 })
  expect((await of(503)).code).toBe('busy')
  expect(await of(500, '<html>oops</html>')).toEqual({ code: 'server' })
})

test('the list of models', async () => {
  const fetch = vi.fn(async () => Response.json({ data: [{ id: 'a', context_length: 512, vision: true, thinking: true }, { id: 'b', parent: 'a' }, { no: 1 }] }))
  vi.stubGlobal('fetch', fetch)
  expect(await listModels('k')).toEqual([{ id: 'a', context: 512, vision: true, thinking: true }, { id: 'b', parent: 'a' }])
  expect(fetch.mock.calls[0]).toMatchObject(['v1/models', { headers: { Authorization: 'Bearer k' } }])
})

test('tokens, whole and in part', () => {
  const entry = (token: string, bytes: number[]) => ({ token, bytes, logprob: -1 })
  const content = [{ ...entry('\uFFFD', [226, 130]), top_logprobs: [entry('a', [97])] }]
  expect(pieceOf(JSON.stringify({ choices: [{ delta: { content: '' }, logprobs: { content } }] })).tokens).toEqual([
    { text: '\\xE2\\x82', logprob: -1, others: [['a', -1]] },
  ])
})
