// The server's OpenAI dialect: the list of models and streamed chat completions.
import { EventParser } from './sse.ts'
import type { Candidate, Failure, Sampling, Token } from './types.ts'

/** A request that did not succeed, with what to tell the person. */
export class RequestFailed extends Error {
  readonly failure: Failure
  constructor(failure: Failure) {
    super(failure.detail ?? failure.code)
    this.failure = failure
  }
}

export interface Model {
  id: string
  /** Tokens that fit, prompt and answer together, where the server says so. */
  context?: number
  /** Whether pictures can be shown to it. */
  vision?: boolean
  /** Whether it can think apart from its answer. */
  thinking?: boolean
  /** The model that an adapter belongs to, where the server says so. */
  parent?: string
}

/** What a stream brings, piece by piece. */
export interface Piece {
  text?: string
  /** Of what the model thinks before it says something. */
  thought?: string
  tokens?: Token[]
  finish?: string
  usage?: { prompt: number; completion: number; cached?: number }
}

/** A part of a turn's content. */
export type Part = { type: 'text'; text: string } | { type: 'image_url'; image_url: { url: string } }

/** A turn: text, or parts if it shows pictures. */
export interface Turn {
  role: string
  content: string | Part[]
  /** What the model thought before. */
  reasoning_content?: string
}

export interface ChatRequest {
  model: string
  messages: Turn[]
  sampling: Sampling
  /** How many alternatives to ask for with each token; 0 asks for none. */
  alternatives: number
}

const headers = (key: string): Record<string, string> => (key ? { Authorization: `Bearer ${key}` } : {})

async function send(url: string, init: RequestInit): Promise<Response> {
  let response: Response
  try {
    response = await fetch(url, init)
  } catch (e) {
    if (init.signal?.aborted) throw e
    throw new RequestFailed({ code: 'network' })
  }
  if (response.ok) return response
  throw new RequestFailed(await failureOf(response))
}

/** Says what a refusal means, and keeps the server's own words for it. */
export async function failureOf(response: Response): Promise<Failure> {
  const detail = messageOf(await response.text().catch(() => ''))
  const failure: Failure = { code: codeOf(response.status) }
  if (detail) failure.detail = detail
  const retry = Number(response.headers.get('retry-after'))
  if (retry > 0) failure.retry = retry
  return failure
}

function codeOf(status: number): Failure['code'] {
  if (status === 401) return 'key'
  if (status === 403) return 'forbidden'
  if (status === 404) return 'missing'
  if (status === 413) return 'large'
  if (status === 429 || status === 503) return 'busy'
  return status >= 500 ? 'server' : 'refused'
}

function messageOf(body: string): string {
  try {
    const error = JSON.parse(body).error
    const message = typeof error === 'string' ? error : error?.message
    if (typeof message === 'string') return message.slice(0, 2000)
  } catch {
    // Not JSON: a proxy's page, say. Short text is worth showing, markup is not.
  }
  return body.length < 300 && !body.includes('<') ? body.trim() : ''
}

const positive = (v: unknown) => (typeof v === 'number' && v > 0 ? v : undefined)

/** The models that the server offers, in its order. */
export async function listModels(key: string, signal?: AbortSignal): Promise<Model[]> {
  const response = await send('v1/models', { headers: headers(key), signal: signal ?? null })
  const body: unknown = await response.json().catch(() => null)
  const data = (body as { data?: unknown } | null)?.data
  if (!Array.isArray(data)) throw new RequestFailed({ code: 'strange' })
  return data.flatMap((entry): Model[] => {
    if (typeof entry?.id !== 'string') return []
    const model: Model = { id: entry.id }
    const context = positive(entry.context_length) ?? positive(entry.max_model_len)
    if (context) model.context = context
    if (entry.vision === true) model.vision = true
    if (entry.thinking === true) model.thinking = true
    if (typeof entry.parent === 'string') model.parent = entry.parent
    return [model]
  })
}

/** The body of a request, as it goes over the wire. */
export function bodyOf(request: ChatRequest): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model: request.model,
    messages: request.messages,
    stream: true,
    stream_options: { include_usage: true },
    ...request.sampling,
  }
  if (request.alternatives > 0) Object.assign(body, { logprobs: true, top_logprobs: request.alternatives })
  return body
}

/** Streams an answer. Ends when the server says so; throws when the connection ends before that. */
export async function* chat(request: ChatRequest, key: string, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await send('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers(key) },
    body: JSON.stringify(bodyOf(request)),
    signal,
  })
  const type = response.headers.get('content-type') ?? ''
  if (!response.body || !type.includes('text/event-stream')) throw new RequestFailed({ code: 'strange' })
  const parser = new EventParser()
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((e) => {
        if (signal.aborted) throw e
        throw new RequestFailed({ code: 'broken' })
      })
      if (done) throw new RequestFailed({ code: 'broken' })
      for (const event of parser.push(value)) {
        if (event.data === '[DONE]') return
        yield pieceOf(event.data)
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

/** One event of the stream; an error inside the stream is thrown. */
export function pieceOf(data: string): Piece {
  let chunk: any
  try {
    chunk = JSON.parse(data)
  } catch {
    throw new RequestFailed({ code: 'strange' })
  }
  if (chunk?.error) {
    const detail = messageOf(data)
    throw new RequestFailed(detail ? { code: 'server', detail } : { code: 'server' })
  }
  const piece: Piece = {}
  const choice = chunk?.choices?.[0]
  if (typeof choice?.delta?.content === 'string') piece.text = choice.delta.content
  if (typeof choice?.delta?.reasoning_content === 'string') piece.thought = choice.delta.reasoning_content
  if (typeof choice?.finish_reason === 'string') piece.finish = choice.finish_reason
  if (Array.isArray(choice?.logprobs?.content)) piece.tokens = choice.logprobs.content.map(tokenOf)
  const usage = chunk?.usage
  if (typeof usage?.completion_tokens === 'number') {
    piece.usage = { prompt: usage.prompt_tokens ?? 0, completion: usage.completion_tokens }
    const cached = positive(usage.prompt_tokens_details?.cached_tokens)
    if (cached) piece.usage.cached = cached
  }
  return piece
}

function tokenOf(entry: any): Token {
  const others: Candidate[] = (Array.isArray(entry?.top_logprobs) ? entry.top_logprobs : []).map(candidateOf)
  const [text, logprob] = candidateOf(entry)
  return { text, logprob, others }
}

/** A token that is not whole UTF-8 has its bytes shown, as `\xE2\x82`. */
function candidateOf(entry: any): Candidate {
  const text = String(entry?.token ?? '')
  const bytes: unknown = entry?.bytes
  const logprob = Number(entry?.logprob ?? 0)
  if (text.includes('\uFFFD') && Array.isArray(bytes)) {
    const hex = (b: number) => `\\x${Number(b).toString(16).toUpperCase().padStart(2, '0')}`
    return [bytes.map(hex).join(''), logprob]
  }
  return [text, logprob]
}
