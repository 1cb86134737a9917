// What the page keeps: conversations as trees of messages. All of it is plain JSON.

/** Sampling settings. A field that is absent is not sent: the model's own default holds. */
export interface Sampling {
  temperature?: number
  top_p?: number
  top_k?: number
  min_p?: number
  max_tokens?: number
  seed?: number
  stop?: string[]
  frequency_penalty?: number
  presence_penalty?: number
  /** Whether the model thinks before it answers; only sent to one that can. */
  reasoning_effort?: 'none' | 'medium'
}

/** One candidate at a position: its text and the natural logarithm of its probability. */
export type Candidate = [text: string, logprob: number]

/** A token of an answer and what else could have stood there, likeliest first. */
export interface Token {
  text: string
  logprob: number
  others: Candidate[]
}

/** Why a request or an answer failed; `code` chooses the sentence, `detail` is the server's own. */
export interface Failure {
  code: 'network' | 'broken' | 'key' | 'forbidden' | 'missing' | 'large' | 'busy' | 'refused' | 'server' | 'strange'
  detail?: string
  /** Seconds after which the server asks to be tried again. */
  retry?: number
}

/** Counts and times of an answer. Times are in milliseconds. */
export interface Figures {
  prompt?: number
  completion: number
  /** Tokens that stood there already when the answer was continued. */
  before?: number
  /** Tokens of the prompt that came from the prefix cache. */
  cached?: number
  /** From the request to the first token. */
  first?: number
  /** From the first token to the last. */
  span: number
}

/** A picture that a message shows. */
export interface Picture {
  /** The name of its file. */
  name: string
  /** A data URL: PNG, JPEG or WebP. */
  url: string
}

export interface Message {
  id: string
  /** The message that this one answers; null at the head of the conversation. */
  parent: string | null
  role: 'user' | 'assistant'
  text: string
  /** What the model thought before it said it. */
  thought?: string
  /** Shown before the text. */
  pictures?: Picture[]
  /** When it was made, in milliseconds since 1970. */
  at: number
  model?: string
  tokens?: Token[]
  figures?: Figures
  /** `stop`, `length`, ... as the server says; `stopped` when the person stopped it. */
  finish?: string
  failure?: Failure
  /** A person changed this answer. */
  edited?: boolean
}

export interface Conversation {
  id: string
  title: string
  created: number
  updated: number
  system: string
  model: string
  sampling: Sampling
  /** In the order in which they were made; siblings are alternatives of each other. */
  messages: Message[]
  /** The child that is shown, by parent; the key of the head is the empty string. */
  chosen: Record<string, string>
}

/** What the list of conversations needs, without the messages. */
export interface Summary {
  id: string
  title: string
  updated: number
}
