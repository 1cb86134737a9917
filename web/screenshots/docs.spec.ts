// The screenshots in docs/, of the built-in model's answers: `npm run screenshots`.
import { expect, test, type Page } from '@playwright/test'
import { resolve } from 'node:path'

const URL = process.env.PAGE_URL!
const docs = (name: string) => resolve(import.meta.dirname ?? '.', '../../docs', name)
const answers = (page: Page) => page.locator('.message.assistant')

/** Asks one question after the other; answers are the same whenever this runs with the same model. */
async function talk(page: Page, temperature: RegExp, send: RegExp, questions: string[]) {
  await page.goto(URL)
  await expect(page.getByRole('combobox').first()).toBeEnabled()
  await page.keyboard.press('Alt+o')
  await page.getByLabel(temperature).fill('0')
  await page.keyboard.press('Escape')
  for (const [i, question] of questions.entries()) {
    await page.locator('#message').fill(question)
    await page.getByRole('button', { name: send }).click()
    await expect(answers(page)).toHaveCount(i + 1)
    await expect(page.getByRole('button', { name: send })).toBeVisible()
    await expect(answers(page).last().locator('.measures')).toContainText(/token|jeton/)
  }
}

/** When nothing moves any more. */
async function shot(page: Page, name: string) {
  await page.evaluate(() => Promise.all(document.getAnimations().map((a) => a.finished.catch(() => null))))
  await page.screenshot({ path: docs(name) })
}

test.describe('on a desk', () => {
  test.use({ viewport: { width: 1200, height: 780 } })
  test('a conversation, its tokens, the palette in the dark', async ({ page }) => {
    await talk(page, /^Temperature/, /^Send/, ['Who are you?', 'Tell me a joke.'])
    await shot(page, 'page.png')
    await page.keyboard.press('Alt+t')
    await page.locator('.token').nth(4).click()
    await expect(page.locator('.alternatives')).toBeVisible()
    await shot(page, 'page-tokens.png')
    await page.keyboard.press('Alt+t')
    await page.emulateMedia({ colorScheme: 'dark' })
    await page.keyboard.press('Control+k')
    await expect(page.getByRole('dialog')).toBeVisible()
    await shot(page, 'page-dark.png')
  })
})

test.describe('on a phone', () => {
  test.use({ viewport: { width: 390, height: 780 }, deviceScaleFactor: 1.5, hasTouch: true, isMobile: true, locale: 'fr-FR' })
  test('in French', async ({ page }) => {
    await talk(page, /^Température/, /^Envoyer/, ['Quelle est la capitale de l’Italie ?'])
    await shot(page, 'page-phone.png')
  })
})
