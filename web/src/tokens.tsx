import { useRef, useState } from 'preact/hooks'
import { number, percent, t } from './i18n.ts'
import { takeAlternative } from './store.ts'
import type { Candidate, Message, Token } from './types.ts'

/** Spaces and line breaks made visible, for a token that stands alone. */
export function visible(text: string): string {
  if (text === '') return '∅'
  return text.replace(/ /g, '␣').replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/\r/g, '␍')
}

/** How unexpected a token is, from 0 (certain) to 1 (one in a thousand, or less). */
export function surprise(logprob: number): number {
  return Math.min(1, Math.max(0, -logprob / Math.log(1000)))
}

/** The candidates at a position, likeliest first, with the chosen one among them, and what is left to all others. */
export function candidates(token: Token): { list: Candidate[]; rest: number } {
  const has = token.others.some(([text, p]) => text === token.text && Math.abs(p - token.logprob) < 1e-6)
  const list = has ? [...token.others] : [...token.others, [token.text, token.logprob] satisfies Candidate]
  list.sort((a, b) => b[1] - a[1])
  return { list, rest: Math.max(0, 1 - list.reduce((sum, [, p]) => sum + Math.exp(p), 0)) }
}

/** The answer token by token; a chosen one shows what else could have stood there. */
export function TokenView({ message, tokens, busy }: { message: Message; tokens: Token[]; busy: boolean }) {
  const [at, setAt] = useState(0)
  const box = useRef<HTMLDivElement>(null)
  const go = (i: number) => {
    const to = Math.max(0, Math.min(tokens.length - 1, i))
    setAt(to)
    box.current?.querySelector<HTMLElement>(`[data-i="${to}"]`)?.focus()
  }
  const onKeyDown = (e: KeyboardEvent) => {
    const steps: Record<string, number> = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 }
    const to = e.ctrlKey || e.metaKey || e.altKey ? undefined : steps[e.key]
    if (to === undefined) return
    e.preventDefault()
    go(to)
  }
  const token = tokens[at]
  return (
    <div class="dissected">
      <p class="aside" id="tokens-help">{t('tokensHelp')}</p>
      <div class="tokens" ref={box} role="group" aria-label={t('tokens')} onKeyDown={onKeyDown}>
        {tokens.map((token, i) => (
          <span key={i} data-i={i} role="button" tabIndex={i === at ? 0 : -1} aria-pressed={i === at}
            class="token" style={{ '--surprise': `${Math.round(surprise(token.logprob) * 100)}%` }}
            aria-label={`${visible(token.text)}, ${percent(Math.exp(token.logprob))}`} onClick={() => go(i)}>
            {token.text.includes('\n') ? visible(token.text).replaceAll('⏎', '⏎\n') : token.text}
          </span>
        ))}
      </div>
      {token && <Alternatives token={token} at={at} of={tokens.length} take={busy ? undefined : (c) => takeAlternative(message, at, c)} />}
    </div>
  )
}

interface AlternativesProps {
  token: Token
  at: number
  of: number
  /** Goes on from another candidate. */
  take: ((candidate: Candidate) => void) | undefined
}

function Alternatives({ token, at, of, take }: AlternativesProps) {
  const { list, rest } = candidates(token)
  const row = (key: string | number, text: string, p: number, kind: string, run?: () => void) => (
    <tr key={key} class={kind}>
      <th scope="row">{run ? <button type="button" class="text" onClick={run}>{text}</button> : <span>{text}</span>}{kind === 'chosen' && <span class="unseen"> ({t('chosen')})</span>}</th>
      <td class="bar"><span style={{ width: `${Math.max(0.5, p * 100)}%` }} /></td>
      <td>{percent(p)}</td>
    </tr>
  )
  let found = false
  return (
    <div class="alternatives" aria-live="polite">
      <table>
        <caption>{t('tokenAt', { n: at + 1, of: number(of) })}</caption>
        <tbody>
          {list.map(([text, p], i) => {
            const own = !found && text === token.text && Math.abs(p - token.logprob) < 1e-6
            found ||= own
            const whole = !text.startsWith('\\x') // part of a character can't be sent as text
            const run = own || !take || !whole ? undefined : () => take([text, p])
            return row(i, visible(text), Math.exp(p), own ? 'chosen' : '', run)
          })}
          {rest > 0.00005 && row('rest', t('others'), rest, 'rest')}
        </tbody>
      </table>
      <p class="aside">{t('takeHelp')}</p>
    </div>
  )
}
