import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { count, duration, language, number, percent, preferred, t } from '../src/i18n.ts'
import { candidates, surprise, visible } from '../src/tokens.tsx'

// The modules of the page's state look at the browser when they are loaded.
vi.mock('../src/store.ts', () => ({}))
beforeEach(() => void (language.value = 'en'))
afterEach(() => void (language.value = 'en'))

test('the language of the page', () => {
  expect(preferred(['de-DE', 'fr-CA', 'en'])).toBe('fr')
  expect(preferred(['de'])).toBe('en')
  expect(t('position', { n: 2, of: 3 })).toBe('2 of 3')
  expect(count('nTokens', 1)).toBe('1 token')
  expect(count('nTokens', 1234)).toBe('1,234 tokens')
  language.value = 'fr'
  expect(count('nTokens', 0)).toBe('0 jeton')
  expect(count('nTokens', 1234).replace(/\s/g, ' ')).toBe('1 234 jetons')
  expect(number(1.5, 1)).toBe('1,5')
})

test('figures', () => {
  expect(percent(0.76)).toBe('76.0%')
  expect(percent(0.0123)).toBe('1.23%')
  expect(duration(19.4)).toBe('19\u00A0ms')
  expect(duration(1960)).toBe('2.0\u00A0s')
})

test('candidates of a token', () => {
  const token = { text: 'c', logprob: Math.log(0.05), others: [['a', Math.log(0.5)], ['b', Math.log(0.3)]] as [string, number][] }
  const { list, rest } = candidates(token)
  expect(list.map(([text]) => text)).toEqual(['a', 'b', 'c'])
  expect(rest).toBeCloseTo(0.15)
  expect(candidates({ ...token, others: [...token.others, ['c', Math.log(0.05)]] }).list).toHaveLength(3)
  expect(surprise(0)).toBe(0)
  expect(surprise(-100)).toBe(1)
  expect(visible(' a\n')).toBe('␣a⏎')
})
