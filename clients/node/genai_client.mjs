// Google's own client for Gemini, in Node.
import { ApiError, GoogleGenAI } from '@google/genai'
import { ABSENT, KEY, KEYED_URL, MODEL, URL, assert, main, refused, unit } from './harness.mjs'

const connect = (baseUrl, apiKey) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl } })
const client = connect(URL, 'none')
const contents = 'Tell me a story about a red ball.'
const config = { maxOutputTokens: 24, seed: 7 }
const same = { model: MODEL, contents, config }
const generate = (more, from = client) => from.models.generateContent({ ...same, config: { ...config, ...more } })

await main('google-genai (Node)', {
  async 'models.generateContent'() {
    const answer = await generate()
    assert.ok(answer.text)
    const usage = answer.usageMetadata
    assert.equal(usage.totalTokenCount, usage.promptTokenCount + usage.candidatesTokenCount)
  },
  async 'models.generateContentStream gives the same text as without'() {
    const whole = await generate()
    let text = ''
    for await (const chunk of await client.models.generateContentStream(same)) text += chunk.text ?? ''
    assert.equal(text, whole.text)
  },
  async 'chats: several turns with a system instruction'() {
    const chat = client.chats.create({ model: MODEL, config: { ...config, systemInstruction: 'You tell stories.' } })
    assert.ok((await chat.sendMessage({ message: contents })).text)
    let text = ''
    for await (const chunk of await chat.sendMessageStream({ message: 'And then?' })) text += chunk.text ?? ''
    assert.ok(text)
    // The client keeps each piece of a stream as a content of its own.
    const roles = chat.getHistory().map((c) => c.role)
    assert.deepEqual([roles.slice(0, 3), [...new Set(roles.slice(3))]], [['user', 'model', 'user'], ['model']])
  },
  async 'models.countTokens agrees with the usage of an answer'() {
    const { totalTokens } = await client.models.countTokens({ model: MODEL, contents })
    assert.equal(totalTokens, (await generate()).usageMetadata.promptTokenCount)
  },
  async 'models.embedContent'() {
    const { embeddings } = await client.models.embedContent({ model: MODEL, contents: ['a red ball', 'a blue ball'] })
    assert.equal(embeddings.length, 2)
    embeddings.forEach((e) => unit(e.values))
  },
  async 'models.list and models.get'() {
    const names = []
    for await (const model of await client.models.list()) names.push(model.name)
    assert.ok(names.includes(`models/${MODEL}`))
    assert.equal((await client.models.get({ model: MODEL })).name, `models/${MODEL}`)
  },
  async 'each error has its code and says which field'() {
    const absent = client.models.generateContent({ ...same, model: ABSENT })
    assert.match((await refused(ApiError, 404, absent)).message, /no-such-model/)
    assert.match((await refused(ApiError, 400, generate({ temperature: -1 }))).message, /temperature/)
    const format = generate({ responseMimeType: 'application/json' })
    assert.match((await refused(ApiError, 400, format)).message, /responseMimeType/)
  },
  async 'keys, right and wrong'() {
    assert.ok((await generate({}, connect(KEYED_URL, KEY))).text)
    await refused(ApiError, 401, generate({}, connect(KEYED_URL, 'wrong')))
  },
})
