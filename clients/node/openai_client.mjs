// OpenAI's own client for Node.
import OpenAI from 'openai'
import { ABSENT, KEY, KEYED_URL, MODEL, URL, assert, main, refused, unit } from './harness.mjs'

const connect = (url, apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
const client = connect(URL, 'none')
const messages = [{ role: 'user', content: 'Tell me a story about a red ball.' }]
const same = { model: MODEL, messages, max_tokens: 24, seed: 7 }
const create = (more) => client.chat.completions.create({ ...same, ...more })

await main('openai (Node)', {
  async 'chat.completions.create'() {
    const answer = await create()
    assert.ok(answer.choices[0].message.content)
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
  },
  async 'chat.completions.create({ stream }) gives the same text as without'() {
    const whole = await create()
    let text = ''
    let usage
    for await (const chunk of await create({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? ''
      usage = chunk.usage ?? usage
    }
    assert.equal(text, whole.choices[0].message.content)
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens)
  },
  async 'chat.completions.stream, the helper with events'() {
    let text = ''
    const stream = client.chat.completions.stream(same).on('content', (delta) => (text += delta))
    assert.equal(await stream.finalContent(), text)
  },
  async 'a stream that the client aborts leaves the server well'() {
    const stream = await create({ stream: true, max_tokens: 200 })
    for await (const _ of stream) break
    assert.ok((await create()).choices[0].message.content)
  },
  async 'several turns'() {
    const one = await create()
    const turns = [...messages, one.choices[0].message, { role: 'user', content: 'And then?' }]
    const two = await create({ messages: turns })
    assert.ok(two.usage.prompt_tokens > one.usage.prompt_tokens + one.usage.completion_tokens)
  },
  async 'responses.create, whole and streamed'() {
    const ask = { model: MODEL, input: 'Tell me a story.', max_output_tokens: 16, store: false }
    assert.ok((await client.responses.create(ask)).output_text)
    let text = ''
    let last
    for await (const event of await client.responses.create({ ...ask, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta
      last = event
    }
    assert.ok(text && ['response.completed', 'response.incomplete'].includes(last.type), last.type)
  },
  async 'embeddings.create'() {
    const { data } = await client.embeddings.create({ model: MODEL, input: ['a red ball', 'a blue ball'] })
    assert.equal(data.length, 2)
    data.forEach((d) => unit(d.embedding))
  },
  async 'models.list and models.retrieve'() {
    const names = []
    for await (const model of client.models.list()) names.push(model.id)
    assert.ok(names.includes(MODEL))
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL)
  },
  async 'each error is of its class and names the field'() {
    assert.match((await refused(OpenAI.NotFoundError, 404, create({ model: ABSENT }))).message, /no-such-model/)
    assert.equal((await refused(OpenAI.BadRequestError, 400, create({ temperature: -1 }))).param, 'temperature')
    const format = { type: 'json_object' }
    const error = await refused(OpenAI.BadRequestError, 400, create({ response_format: format }))
    assert.equal(error.param, 'response_format')
  },
  async 'keys, right and wrong'() {
    assert.ok((await connect(KEYED_URL, KEY).chat.completions.create(same)).choices.length)
    await refused(OpenAI.AuthenticationError, 401, connect(KEYED_URL, 'wrong').chat.completions.create(same))
  },
})
