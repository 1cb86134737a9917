// The page in Chromium against the real server and its built-in model. Only failures that a healthy
// server never shows are played by the test.
import AxeBuilder from '@axe-core/playwright'
import { expect, test as base, type Locator, type Page } from '@playwright/test'
import { readFileSync } from 'node:fs'
import { KEY } from './server.ts'

const URL = process.env.PAGE_URL!
const KEYED_URL = process.env.PAGE_KEYED_URL!

/** Every test: no script error, nothing blocked by the policy, and no request to another host. */
const test = base.extend<{ strict: void }>({
  strict: [async ({ context }, use) => {
    const wrong: string[] = []
    context.on('request', (r) => {
      const u = r.url()
      const { PAGE_EYES_URL = URL, PAGE_THINKS_URL = URL } = process.env
      if (![URL, KEYED_URL, PAGE_EYES_URL, PAGE_THINKS_URL].some((own) => u.startsWith(`${own}/`)) && !/^(blob|data):/.test(u)) wrong.push(`request to ${u}`)
    })
    context.on('weberror', (e) => wrong.push(`script error: ${e.error().stack}`))
    context.on('console', (m) => {
      if (m.type() === 'error' && /Content.Security.Policy|violates/i.test(m.text())) wrong.push(m.text())
    })
    await use()
    expect(wrong).toEqual([])
  }, { auto: true }],
})

const field = (page: Page) => page.getByRole('textbox', { name: 'Your message' })
const answers = (page: Page) => page.locator('.message.assistant')
const spoken = (answer: Locator) => answer.locator('.prose')

async function open(page: Page, url = URL) {
  await page.goto(url)
  await expect(page.getByRole('combobox', { name: 'Model' })).toBeEnabled()
}

/** Settings that make answers short and always the same. */
async function settle(page: Page, most = 24) {
  await page.keyboard.press('Alt+o')
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Longest answer').fill(String(most))
  await page.keyboard.press('Escape')
  await expect(page.getByRole('dialog')).toBeHidden()
  await expect(field(page)).toBeFocused()
}

async function say(page: Page, text: string) {
  const before = await answers(page).count()
  await field(page).fill(text)
  await field(page).press('Enter')
  await expect(answers(page)).toHaveCount(before + 1)
  await done(page)
}

async function done(page: Page) {
  await expect(page.getByRole('button', { name: 'Send' })).toBeVisible()
  await expect(answers(page).last().locator('.measures')).toContainText('token')
}

/** Holds the rest of the next answer back until `letGo()`, from its middle on or from the first of what is said: the
 * built-in model is done before anyone could stop it, measure its speed or read its thought. */
async function holdBack(page: Page, from: 'middle' | 'words' = 'middle') {
  await page.evaluate((from) => {
    const real = window.fetch
    window.fetch = async (...args) => {
      const response = await real(...args)
      if (!String(args[0]).includes('completions')) return response
      window.fetch = real
      const events = (await response.text()).split(/(?<=\n\n)/)
      const signal = (args[1] as RequestInit).signal!
      const words = events.findIndex((e) => /"content":"[^"]/.test(e))
      const held = from === 'words' ? words : events.length / 2
      const body = new ReadableStream({
        start(c) {
          const send = (some: string[]) => c.enqueue(new TextEncoder().encode(some.join('')))
          send(events.slice(0, held))
          signal.addEventListener('abort', () => c.error(new DOMException('', 'AbortError')))
          Object.assign(window, { letGo: () => (send(events.slice(held)), c.close()) })
        },
      })
      return new Response(body, { headers: response.headers })
    }
  }, from)
}

async function noViolations(page: Page) {
  // Colours are judged when nothing fades in any more.
  await page.evaluate(() => Promise.all(document.getAnimations().map((a) => a.finished.catch(() => null))))
  const { violations } = await new AxeBuilder({ page }).analyze()
  const found = violations.filter((v) => v.impact === 'serious' || v.impact === 'critical')
  expect(found.map((v) => `${v.id}: ${v.nodes.map((n) => n.html).join('\n')}`)).toEqual([])
}

test('a conversation: an answer streams in, a second turn, a reload keeps it', async ({ page }) => {
  await open(page)
  await settle(page)
  await holdBack(page)
  await field(page).fill('Tell me a story about a red ball.')
  await field(page).press('Enter')
  await expect(spoken(answers(page))).not.toBeEmpty()
  // Longer than what the page takes as measurable.
  await page.waitForTimeout(50)
  await page.evaluate('letGo()')
  await done(page)
  await say(page, 'And then?')
  await expect(page).toHaveTitle('Tell me a story about a red ball. · Lapidary')
  await expect(answers(page).last()).toBeInViewport()
  await expect(answers(page).first().locator('.measures')).toContainText(/\d+ tokens · .*tokens\/s/)
  const texts = await spoken(answers(page)).allInnerTexts()
  expect(texts).toHaveLength(2)
  await page.reload()
  await expect(spoken(answers(page))).toHaveText(texts)
  await expect(page.getByRole('navigation').getByRole('button', { name: 'Tell me a story' }).first()).toHaveAttribute('aria-current', 'page')
})

test('settings take effect: temperature 0 answers the same again, stop strings end it', async ({ page }) => {
  await open(page)
  await settle(page)
  await say(page, 'Tell me about a dog.')
  const first = await spoken(answers(page)).innerText()
  await page.keyboard.press('Alt+n')
  await say(page, 'Tell me about a dog.')
  expect(await spoken(answers(page)).innerText()).toBe(first)
  const word = first.split(/\s+/)[4]!
  await page.keyboard.press('Alt+o')
  await page.getByLabel('Stop at').fill(word)
  await page.keyboard.press('Escape')
  await page.keyboard.press('Alt+r')
  await expect(answers(page).getByText('2 of 2')).toBeVisible()
  await done(page)
  expect((await spoken(answers(page)).innerText()).trim()).toBe(first.slice(0, first.indexOf(word)).trim())
})

test('stop keeps what there is, and the answer can go on', async ({ page }) => {
  await open(page)
  await settle(page, 20)
  await holdBack(page)
  await field(page).fill('Tell me about a dog.')
  await field(page).press('Enter')
  await expect(spoken(answers(page))).not.toBeEmpty()
  await page.getByRole('button', { name: 'Stop' }).click()
  await expect(page.getByText('You stopped this answer.')).toBeVisible()
  const kept = await spoken(answers(page)).innerText()
  expect(kept.length).toBeGreaterThan(0)
  await page.getByRole('button', { name: 'Go on' }).click()
  await done(page)
  const whole = await spoken(answers(page)).innerText()
  expect(whole.startsWith(kept)).toBe(true)
  expect(whole.length).toBeGreaterThan(kept.length)
})

test('an answer of the whole context is stopped at the server', async ({ page }) => {
  await open(page)
  await field(page).fill('Tell me a very long story.')
  await field(page).press('Enter')
  await page.keyboard.press('Escape')
  await expect(page.getByRole('button', { name: 'Send' })).toBeVisible()
  await settle(page, 8)
  await say(page, 'Hello')
})

test('edit and regenerate make branches, and all of them can be seen again', async ({ page }) => {
  await open(page)
  await settle(page)
  await say(page, 'Tell me about a dog.')
  const dog = await spoken(answers(page)).innerText()
  await page.getByRole('button', { name: 'Edit' }).first().click()
  await page.getByRole('textbox', { name: 'Edit the message' }).fill('Tell me about a cat.')
  await page.keyboard.press('Enter')
  await expect(page.locator('.message.user').getByText('2 of 2')).toBeVisible()
  await done(page)
  await expect(page.locator('.said')).toHaveText('Tell me about a cat.')
  await page.getByRole('button', { name: 'Previous alternative' }).click()
  await expect(spoken(answers(page))).toHaveText(dog)
  await page.getByRole('button', { name: 'Regenerate' }).click()
  await expect(answers(page).getByText('2 of 2')).toBeVisible()
  await done(page)
  await page.getByRole('button', { name: 'Continue in a new conversation' }).click()
  await expect(page.getByText('2 of 2')).toHaveCount(0)
  await expect(spoken(answers(page))).toHaveText(dog)
})

test('each token shows its alternatives, and one of them begins a branch', async ({ page }) => {
  await open(page)
  await settle(page, 12)
  await say(page, 'Tell me a story.')
  const first = await spoken(answers(page)).innerText()
  await page.keyboard.press('Alt+t')
  const tokens = page.locator('.token')
  await tokens.nth(2).click()
  await page.keyboard.press('ArrowRight')
  await expect(tokens.nth(3)).toBeFocused()
  const table = page.locator('.alternatives')
  await expect(table).toContainText(/Token 4 of \d+/)
  await expect(table.getByRole('row')).toHaveCount(6)
  // At temperature 0 the chosen token is the likeliest one.
  await expect(table.getByRole('row').first()).toHaveClass('chosen')
  await noViolations(page)
  await table.getByRole('row').nth(1).getByRole('button').click()
  await expect(answers(page).getByText('2 of 2')).toBeVisible()
  await done(page)
  const second = await spoken(answers(page)).innerText()
  expect(second).not.toBe(first)
})

test('keyboard only', async ({ page }) => {
  await open(page)
  await settle(page, 12)
  await page.keyboard.type('Tell me about a dog.')
  await page.keyboard.press('Enter')
  await expect(answers(page)).toHaveCount(1)
  await done(page)
  await page.keyboard.press('ArrowUp')
  await page.keyboard.press('Control+a')
  await page.keyboard.type('Tell me about a bird.')
  await page.keyboard.press('Enter')
  await expect(page.locator('.message.user').getByText('2 of 2')).toBeVisible()
  await done(page)
  await page.keyboard.press('Alt+n')
  await expect(page.locator('.message')).toHaveCount(0)
  await expect(field(page)).toBeFocused()
  await page.keyboard.press('Control+k')
  await expect(page.getByRole('dialog').locator(':focus')).toBeVisible()
  await page.keyboard.type('about a dog')
  await page.keyboard.press('Enter')
  await expect(page.locator('.message.user')).toContainText('Tell me about a bird.')
  await expect(field(page)).toBeFocused()
  // Everything is reached with Tab, and the focus can be seen.
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press('Shift+Tab')
    const seen = await page.evaluate(() => getComputedStyle(document.activeElement!).outlineStyle)
    expect(seen).not.toBe('none')
  }
  await page.keyboard.press('Alt+l')
  await expect(page.getByRole('navigation')).toBeHidden()
  await page.keyboard.press('Control+k')
  await expect(page.getByRole('dialog')).toBeVisible()
  await page.keyboard.press('Escape')
  await expect(page.getByRole('dialog')).toBeHidden()
})

test('keys that follow Escape at once are written', async ({ page }) => {
  await open(page)
  const keys = async (open: string, inside: string, text: string) => {
    await page.keyboard.press(open)
    await expect(page.getByRole('dialog')).toBeVisible()
    await page.getByRole('dialog').locator(inside).first().focus()
    await page.keyboard.type('1')
    await page.keyboard.press('Escape')
    // No waiting here: whoever writes does not wait either.
    await page.keyboard.type(text)
    await expect(field(page)).toHaveValue(text)
    await field(page).fill('')
  }
  for (let i = 0; i < 3; i++) {
    await keys('Alt+o', 'input[type=number]', 'after the options')
    await keys('Control+k', 'input', 'after the palette')
  }
})

const cat = 'iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAA00lEQVR42gHIADf/AAAePFp4lrTS8A4sSmiGpMLg/hw6WHaUsgARL01riafF4wEfPVt5l7XT8Q8tS2mHpcMAIkBefJq41vQSME5siqjG5AIgPlx6mLbUADNRb42ryecFI0FffZu51/UTMU9ti6nH5QBEYoCevNr4FjRScI6syugGJEJgfpy62PYAVXORr83rCSdFY4Gfvdv5FzVTcY+ty+kHAGaEosDe/Bo4VnSSsM7sCihGZIKgvtz6GAB3lbPR7w0rSWeFo8Hf/Rs5V3WTsc/tCyl01GBhVt/uZQAAAABJRU5ErkJggg=='

test('a model without eyes says so, and takes no picture', async ({ page }) => {
  await open(page)
  const button = page.getByRole('button', { name: 'Add a picture' })
  await expect(button).toHaveAttribute('aria-disabled', 'true')
  // It can be reached and pressed, to say why.
  await button.press('Enter')
  await expect(page.getByText('reads text alone and can’t see pictures')).toBeVisible()
  await noViolations(page)
})

test('pictures are pasted, dropped and chosen, seen by the model, and kept', async ({ page }, info) => {
  const url = process.env.PAGE_EYES_URL
  if (!url) console.log('skipped: ../shared/fixtures is not there')
  test.skip(!url, '../shared/fixtures is not there')
  await open(page, url)
  await settle(page, 12)
  const give = (kind: 'paste' | 'drop', name: string, type = 'image/png') =>
    page.evaluate(([kind, name, type, data]) => {
      const bytes = Uint8Array.from(atob(data!), (c) => c.charCodeAt(0))
      const transfer = new DataTransfer()
      transfer.items.add(new File([bytes], name!, { type: type! }))
      const at = document.getElementById('message')!
      at.dispatchEvent(kind === 'paste'
        ? new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }))
    }, [kind, name, type, cat])
  const beside = page.locator('.composer .pictures img')
  await give('paste', 'pasted.png')
  await expect(beside).toHaveCount(1)
  await give('drop', 'dropped.png')
  await expect(beside).toHaveCount(2)
  await give('drop', 'moving.gif', 'image/gif')
  await expect(page.getByText('moving.gif is no PNG, JPEG or WebP picture.')).toBeVisible()
  const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name: 'Add a picture' }).click()])
  await chooser.setFiles({ name: 'chosen.png', mimeType: 'image/png', buffer: Buffer.from(cat, 'base64') })
  await expect(beside).toHaveCount(3)
  await page.getByRole('button', { name: 'Remove dropped.png' }).click()
  await expect(beside).toHaveCount(2)
  await noViolations(page)
  const [request] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), say(page, 'What is this?')])
  const shown = { type: 'image_url', image_url: { url: `data:image/png;base64,${cat}` } }
  expect(request.postDataJSON().messages).toEqual([{ role: 'user', content: [shown, shown, { type: 'text', text: 'What is this?' }] }])
  await expect(beside).toHaveCount(0)
  await expect(page.getByRole('alert')).toHaveCount(0)
  const kept = page.locator('.message .pictures img')
  await expect(kept).toHaveCount(2)
  const answer = await spoken(answers(page)).innerText()
  await page.reload()
  await expect(kept).toHaveCount(2)
  await expect(spoken(answers(page))).toHaveText(answer)
  // The picture is asked about again in the next turn, and comes back from a file.
  const [next] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), say(page, 'Sure?')])
  expect(next.postDataJSON().messages[0].content).toHaveLength(3)
  await page.keyboard.press('Alt+o')
  const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'Export this' }).click()])
  const file = info.outputPath('pictures.json')
  await download.saveAs(file)
  const [importer] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name: 'Import' }).click()])
  await importer.setFiles(file)
  await expect(page.getByText('Imported 1 conversation.')).toBeVisible()
  await page.keyboard.press('Escape')
  await expect(page.locator('.sidebar li')).toHaveCount(2)
  await expect(kept).toHaveCount(2)
})

test('a photograph is made smaller, and that is said', async ({ page }) => {
  const url = process.env.PAGE_EYES_URL
  test.skip(!url, '../shared/fixtures is not there')
  await open(page, url)
  await page.evaluate(async () => {
    const canvas = document.createElement('canvas')
    canvas.width = 2400
    canvas.height = 1200
    const pen = canvas.getContext('2d')!
    const noise = pen.createImageData(2400, 1200)
    noise.data.forEach((_, i) => (noise.data[i] = (Math.imul(i, 0x9e3779b1) >>> 13) & 255))
    pen.putImageData(noise, 0, 0)
    const blob: Blob = await new Promise((r) => canvas.toBlob((b) => r(b!), 'image/png'))
    const transfer = new DataTransfer()
    transfer.items.add(new File([blob], 'photo.png', { type: 'image/png' }))
    document.body.querySelector('main')!.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }))
  })
  await expect(page.getByText('photo.png was made smaller: 1600 × 800.')).toBeVisible()
  const size = await page.locator('.composer .pictures img').evaluate((i: HTMLImageElement) => [i.naturalWidth, i.naturalHeight, i.src.slice(0, 15)])
  expect(size).toEqual([1600, 800, 'data:image/jpeg'])
})

/** The page of the model that thinks, set to do so; and a question that makes it think and then speak, with
 * what the server itself says of it. */
async function openThinker(page: Page) {
  const url = process.env.PAGE_THINKS_URL
  if (!url) console.log('skipped: ../shared/fixtures is not there')
  test.skip(!url, '../shared/fixtures is not there')
  await open(page, url)
  await settle(page, 40)
  await page.keyboard.press('Alt+o')
  await page.getByLabel('Thoughts before an answer').selectOption('Think first')
  await page.keyboard.press('Escape')
  for (let i = 0; i < 200; i++) {
    const question = `Why ${i}?`
    const data = { model: 'thinker', messages: [{ role: 'user', content: question }], max_completion_tokens: 40, temperature: 0, reasoning_effort: 'medium' }
    const answer = await page.request.post(`${url}/v1/chat/completions`, { data })
    expect(answer.status()).toBe(200)
    const { reasoning_content: thought, content: text } = (await answer.json()).choices[0].message
    // Its words make no sense; they should be the same as Markdown.
    if (thought?.trim().length > 3 && /^[^\\`*_#<>[\]|~&\x00-\x1f]{4,}$/.test(text ?? '')) return { question, thought: thought as string, text: text as string }
  }
  throw new Error('no question makes it think and speak')
}

const thought = (page: Page) => answers(page).last().locator('details.thought')

test('thoughts are asked for, folded above the answer, kept, and can be done without', async ({ page }) => {
  const { question, thought: thinks, text } = await openThinker(page)
  const [request] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), say(page, question)])
  expect(request.postDataJSON().reasoning_effort).toBe('medium')
  await expect(spoken(answers(page))).toHaveText(text.trim())
  const inside = thought(page).locator('p')
  const folded = async () => {
    await expect(thought(page).getByText('What it thought')).toBeVisible()
    await expect(inside).toBeHidden()
  }
  await folded()
  await thought(page).locator('summary').press('Enter')
  await expect(inside).toBeVisible()
  expect(await inside.textContent()).toBe(thinks)
  await noViolations(page)
  await page.reload()
  await folded()
  expect(await inside.textContent()).toBe(thinks)
  await page.keyboard.press('Alt+o')
  await page.getByLabel('Thoughts before an answer').selectOption('Answer at once')
  await page.keyboard.press('Escape')
  const [again] = await Promise.all([page.waitForRequest('**/v1/chat/completions'), page.getByRole('button', { name: 'Regenerate' }).click()])
  expect(again.postDataJSON().reasoning_effort).toBe('none')
  await expect(answers(page).getByText('2 of 2')).toBeVisible()
  await done(page)
  await page.getByRole('button', { name: 'Previous alternative' }).click()
  await folded()
})

test('a thought can be read while it is thought, and folds when the answer begins', async ({ page }) => {
  const { question, thought: thinks, text } = await openThinker(page)
  await holdBack(page, 'words')
  await field(page).fill(question)
  await field(page).press('Enter')
  await expect(thought(page).getByText('Thinking…')).toBeVisible()
  await expect(thought(page).locator('p')).toBeVisible()
  await expect(thought(page).locator('p')).toHaveText(thinks)
  await expect(spoken(answers(page))).toHaveCount(0)
  await page.evaluate('letGo()')
  await done(page)
  await expect(spoken(answers(page))).toHaveText(text.trim())
  await expect(thought(page).getByText('What it thought')).toBeVisible()
  await expect(thought(page).locator('p')).toBeHidden()
})

test('a model that can’t think is not asked whether to', async ({ page }) => {
  await open(page)
  await page.keyboard.press('Alt+o')
  await expect(page.getByLabel('Temperature')).toBeVisible()
  await expect(page.getByLabel('Thoughts before an answer')).toHaveCount(0)
})

for (const scheme of ['light', 'dark'] as const) {
  test(`accessible in ${scheme} colours`, async ({ page }) => {
    await page.emulateMedia({ colorScheme: scheme })
    await open(page)
    await noViolations(page)
    await settle(page, 12)
    await say(page, 'Hello')
    await noViolations(page)
    await page.getByRole('button', { name: 'Edit' }).first().click()
    await noViolations(page)
    await page.keyboard.press('Escape')
    await page.keyboard.press('Alt+o')
    await expect(page.getByRole('dialog')).toBeVisible()
    await noViolations(page)
    await page.keyboard.press('Escape')
    await expect(page.getByRole('dialog')).toBeHidden()
    await page.keyboard.press('Control+k')
    await expect(page.getByRole('dialog')).toBeVisible()
    await noViolations(page)
    const paper = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor)
    expect(paper).toBe(scheme === 'dark' ? 'rgb(24, 22, 20)' : 'rgb(251, 250, 247)')
  })
}

test('a chosen theme holds over a reload', async ({ page }) => {
  await open(page)
  await page.keyboard.press('Alt+o')
  await page.getByLabel('Colours').selectOption('dark')
  await page.reload()
  await expect(page.locator('html')).toHaveCSS('background-color', 'rgb(24, 22, 20)')
})

test.describe('on a phone', () => {
  test.use({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, locale: 'fr-FR' })
  test('in French: nothing is wider than the screen, and fingers can reach it', async ({ page }) => {
    await page.goto(URL)
    await expect(page.getByRole('combobox', { name: 'Modèle' })).toBeEnabled()
    await expect(page.locator('html')).toHaveAttribute('lang', 'fr')
    const message = page.getByRole('textbox', { name: 'Votre message' })
    await message.fill('Hello')
    await page.getByRole('button', { name: 'Envoyer' }).tap()
    await expect(answers(page).locator('.measures')).toContainText('jetons')
    await expect(page.getByRole('button', { name: 'Envoyer' })).toBeVisible({ timeout: 20_000 })
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(360)
    await noViolations(page)
    await page.getByRole('button', { name: 'Afficher les conversations' }).tap()
    await expect(page.getByRole('navigation')).toBeVisible()
    await noViolations(page)
    await page.getByRole('button', { name: 'Nouvelle conversation', exact: true }).tap()
    await expect(page.getByRole('navigation')).toBeHidden()
    await page.getByRole('button', { name: 'Options de cette conversation' }).tap()
    await expect(page.getByLabel('Température')).toBeVisible()
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(360)
  })
})

test('export, delete, undo, import', async ({ page }, info) => {
  await open(page)
  await settle(page, 12)
  await say(page, 'Hello')
  const text = await spoken(answers(page)).innerText()
  await page.keyboard.press('Alt+o')
  const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'Export this' }).click()])
  const file = info.outputPath('one.json')
  await download.saveAs(file)
  expect(JSON.parse(readFileSync(file, 'utf8'))).toMatchObject({ format: 'lapidary-conversations', version: 1 })
  await page.keyboard.press('Escape')
  const entry = page.getByRole('navigation').getByRole('listitem')
  await entry.hover()
  await entry.getByRole('button', { name: 'Delete' }).click()
  await expect(entry).toHaveCount(0)
  await page.getByRole('button', { name: 'Undo' }).click()
  await expect(spoken(answers(page))).toHaveText(text)
  await page.keyboard.press('Alt+o')
  const choose = async (chosen: string | { name: string; mimeType: string; buffer: Buffer }) => {
    const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name: 'Import' }).click()])
    await chooser.setFiles(chosen as string)
  }
  await choose(file)
  await expect(page.getByText('Imported 1 conversation.')).toBeVisible()
  await expect(page.locator('.sidebar li')).toHaveCount(2)
  await choose({ name: 'bad.json', mimeType: 'application/json', buffer: Buffer.from('{"format":"x"}') })
  await expect(page.getByText('This file can’t be imported: format: expected "lapidary-conversations"')).toBeVisible()
})

test('a server with a key asks for it, says when it is wrong, and remembers it if told', async ({ page }) => {
  await page.goto(KEYED_URL)
  const dialog = page.getByRole('dialog', { name: 'This server asks for a key' })
  await expect(dialog).toBeVisible()
  await noViolations(page)
  await dialog.getByLabel('API key').fill('wrong')
  await page.keyboard.press('Enter')
  await expect(dialog.getByText('The server does not accept this key.')).toBeVisible()
  await dialog.getByLabel('API key').fill(KEY)
  await dialog.getByLabel('Remember').check()
  await dialog.getByRole('button', { name: 'Use the key' }).click()
  await expect(dialog).toBeHidden()
  await settle(page, 8)
  await say(page, 'Hello')
  await page.reload()
  await expect(page.getByRole('combobox', { name: 'Model' })).toBeEnabled()
  await expect(dialog).toBeHidden()
})

test('what is refused or breaks is said in a sentence, and can be tried again', async ({ page }) => {
  await open(page)
  await settle(page, 8)
  // Too long for the model: the server's own words and numbers.
  await field(page).fill('word '.repeat(30000))
  await field(page).press('Enter')
  await expect(page.getByRole('alert')).toContainText(/The server refused the request\..*It says: .*token/s)
  await page.keyboard.press('Alt+n')
  await page.route('**/v1/chat/completions', (r) => r.abort())
  await field(page).fill('Hello')
  await field(page).press('Enter')
  await expect(page.getByRole('alert')).toContainText('The server does not answer.')
  await page.unroute('**/v1/chat/completions')
  await page.route('**/v1/chat/completions', (r) => r.fulfill({ status: 429, headers: { 'retry-after': '7' }, json: { error: { message: 'slow down' } } }))
  await page.getByRole('button', { name: 'Try again' }).click()
  await expect(page.getByRole('alert')).toContainText('Try again in 7 s.')
  await page.unroute('**/v1/chat/completions')
  await page.route('**/v1/chat/completions', (r) => r.fulfill({ contentType: 'text/event-stream', body: 'data: {"choices":[{"delta":{"content":"Half"}}]}\n\n' }))
  await page.getByRole('button', { name: 'Try again' }).click()
  await expect(page.getByRole('alert')).toContainText('The connection broke')
  await expect(spoken(answers(page))).toHaveText('Half')
  await page.unroute('**/v1/chat/completions')
  await page.getByRole('button', { name: 'Try again' }).click()
  await done(page)
  await expect(page.getByRole('alert')).toHaveCount(0)
})

test('nothing that a model writes becomes markup', async ({ page }) => {
  await open(page)
  const evil = '<img src=x onerror="window.hit=1"> <script>window.hit=1</script>\n\n[a](javascript:window.hit=1)\n\n```html\n<script>window.hit=1</script>\n```\n'
  const body = `data: ${JSON.stringify({ choices: [{ delta: { content: evil }, finish_reason: 'stop' }] })}\n\ndata: [DONE]\n\n`
  await page.route('**/v1/chat/completions', (r) => r.fulfill({ contentType: 'text/event-stream', body }))
  await field(page).fill('<b onclick="window.hit=1">me</b>')
  await field(page).press('Enter')
  await expect(page.locator('.said')).toHaveText('<b onclick="window.hit=1">me</b>')
  await expect(spoken(answers(page))).toContainText('<img src=x onerror')
  expect(await answers(page).locator('img, script, a').count()).toBe(0)
  expect(await page.evaluate(() => 'hit' in window)).toBe(false)
  await page.getByRole('button', { name: 'Copy the code' }).click()
  await expect(page.getByText('Copied.')).toBeAttached()
})

test('two tabs show the same conversations', async ({ page, context }) => {
  await open(page)
  await settle(page, 8)
  const other = await context.newPage()
  await open(other)
  await say(page, 'Hello from one tab')
  await expect(other.getByRole('navigation').getByText('Hello from one tab')).toBeVisible()
})
