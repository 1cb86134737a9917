import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { grow } from './composer.tsx'
import { CopyButton } from './copy.tsx'
import { FailureText } from './failure.tsx'
import { Icon, type IconName } from './icons.tsx'
import { count, duration, number, t } from './i18n.ts'
import { Markdown } from './markdown.tsx'
import { memo } from './memo.ts'
import { notify } from './notice.tsx'
import * as store from './store.ts'
import { TokenView } from './tokens.tsx'
import type { Failure, Message } from './types.ts'
import * as ui from './ui.ts'

interface Props {
  message: Message
  /** Its place among its alternatives, and their number. */
  position: number
  of: number
  last: boolean
  /** It is being written now. */
  live: boolean
  /** Some answer of this conversation is being written. */
  busy: boolean
  editing: boolean
  dissected: boolean
  /** Tokens that the model's context holds. */
  context: number | undefined
}

export const MessageView = memo(function MessageView(props: Props) {
  const { message: m, live, last, editing } = props
  const name = m.role === 'user' ? t('you') : m.model || t('model')
  return (
    <li class={`message ${m.role}${last ? ' last' : ''}`}>
      <article aria-label={name} aria-busy={live}>
        <h2>{name}{m.edited && <span class="aside"> · {t('edited')}</span>}</h2>
        {editing ? <Editor message={m} /> : <Body {...props} />}
        {!editing && <Foot {...props} />}
      </article>
    </li>
  )
})

/** Why an answer is not whole. One with no end that nobody writes was cut off, by a reload for instance. */
function failureOf(m: Message, live: boolean): Failure | undefined {
  if (m.role === 'user' || live) return undefined
  return m.failure ?? (m.finish ? undefined : { code: 'broken' })
}

function Body({ message: m, live, busy, dissected }: Props) {
  if (m.role === 'user') return <Said message={m} />
  const failure = failureOf(m, live)
  return (
    <>
      {m.thought && <Thought text={m.thought} open={live && m.text === ''} />}
      {live && m.text === '' && !m.thought && <p class="waiting">{t('thinking')}</p>}
      {dissected && m.tokens ? <TokenView message={m} tokens={m.tokens} busy={busy} /> : m.text !== '' && <Markdown text={m.text} />}
      {dissected && !m.tokens && !live && <p class="aside">{t('tokensNone')}</p>}
      {failure && <FailureText failure={failure} retry={() => store.regenerate(m)} />}
      {!failure && !live && <Ending message={m} busy={busy} />}
    </>
  )
}

/** What the model thought: open while nothing else is there to be read. */
function Thought({ text, open }: { text: string; open: boolean }) {
  return (
    <details class="thought" open={open}>
      <summary>{open ? t('thoughtNow') : t('thought')}</summary>
      <p>{text}</p>
    </details>
  )
}

function Said({ message: m }: { message: Message }) {
  return (
    <>
      {m.pictures && (
        <ul class="pictures" aria-label={t('pictures')}>
          {m.pictures.map((p, i) => <li key={i}><img src={p.url} alt={p.name} title={p.name} /></li>)}
        </ul>
      )}
      {m.text !== '' && <p class="said">{m.text}</p>}
    </>
  )
}

function Ending({ message: m, busy }: { message: Message; busy: boolean }) {
  if (m.finish === 'length' || m.finish === 'stopped') {
    return (
      <p class="aside">
        {m.finish === 'length' ? t('finishLength') : t('finishStopped')}{' '}
        {m.text !== '' && <button type="button" class="text" disabled={busy} onClick={() => store.goOn(m)}>{t('goOn')}</button>}
      </p>
    )
  }
  if (m.finish === 'content_filter') return <p class="aside">{t('finishFilter')}</p>
  return m.text === '' ? <p class="aside">{t('empty')}</p> : null
}

function Foot(props: Props) {
  const { message: m, live, busy } = props
  const answer = m.role === 'assistant'
  return (
    <footer>
      <Branches {...props} />
      {answer && <Measures message={m} context={props.context} />}
      {!live && (
        <div class="actions">
          {m.text !== '' && <CopyButton text={m.text} what="copy" />}
          {answer && <Action icon="again" label={t('regenerate')} disabled={busy} run={() => store.regenerate(m)} />}
          {m.text !== '' && <Action icon="edit" label={t('edit')} disabled={busy} run={() => (ui.editing.value = m.id)} />}
          {answer && m.text !== '' && <Action icon="tokens" label={t('tokens')} pressed={props.dissected} run={() => ui.dissect(m.id)} />}
          {answer && m.text !== '' && <Action icon="branch" label={t('fork')} disabled={busy} run={() => (store.forkAt(m), notify(t('forked')))} />}
        </div>
      )}
    </footer>
  )
}

interface ActionProps {
  icon: IconName
  label: string
  run: () => void
  disabled?: boolean
  pressed?: boolean
}

function Action({ icon, label, run, disabled = false, pressed }: ActionProps) {
  return (
    <button type="button" class="icon" aria-label={label} title={label} disabled={disabled} aria-pressed={pressed} onClick={run}>
      <Icon name={icon} />
    </button>
  )
}

function Branches({ message: m, position, of, busy }: Props) {
  if (of < 2) return null
  return (
    <div class="branches" role="group" aria-label={t('position', { n: position + 1, of })}>
      <Action icon="left" label={t('previous')} disabled={busy || position === 0} run={() => store.showSibling(m, -1)} />
      <span>{t('position', { n: position + 1, of })}</span>
      <Action icon="right" label={t('next')} disabled={busy || position === of - 1} run={() => store.showSibling(m, 1)} />
    </div>
  )
}

/** Milliseconds from the first piece to the last. In fewer all of them may have come at once, and say nothing of
 * the model. */
const MEASURABLE = 20

/** Counts and speed. The speed is that of the tokens after the first, whose time is the prompt's. */
function Measures({ message: m, context }: { message: Message; context: number | undefined }) {
  const f = m.figures
  if (!f || f.completion === 0) return <span class="measures" />
  const rate = f.span >= MEASURABLE ? ((f.completion - 1) * 1000) / f.span : 0
  const all = f.completion + (f.before ?? 0)
  const parts = [count('nTokens', all)]
  if (rate > 0) parts.push(t('perSecond', { n: number(rate, rate < 10 ? 1 : 0) }))
  const rest = f.first === undefined ? [] : [t('firstAfter', { time: duration(f.first) })]
  if (f.prompt !== undefined) {
    const used = context ? t('contextUse', { n: f.prompt + f.completion, of: context }) : count('promptTokens', f.prompt)
    rest.push(used + (f.cached ? `, ${t('cachedTokens', { n: f.cached })}` : ''))
  }
  return (
    <span class="measures" title={rest.join(', ')}>
      {parts.join(' · ')}
      <span class="further">{rest.map((r) => ` · ${r}`).join('')}</span>
    </span>
  )
}

function Editor({ message: m }: { message: Message }) {
  const [text, setText] = useState(m.text)
  const area = useRef<HTMLTextAreaElement>(null)
  const own = m.role === 'user'
  useLayoutEffect(() => {
    area.current!.focus()
    area.current!.setSelectionRange(m.text.length, m.text.length)
  }, [])
  useLayoutEffect(() => grow(area.current), [text])
  const leave = () => {
    ui.editing.value = null
    ui.focusComposer()
  }
  const keep = () => {
    if (!text.trim()) return
    leave()
    if (text !== m.text) store.edit(m, text)
  }
  const onKeyDown = (e: KeyboardEvent) => {
    if (ui.composing(e)) return
    if (e.key === 'Escape') {
      e.preventDefault()
      leave()
    } else if (e.key === 'Enter' && (own ? !e.shiftKey && !ui.touch.matches : ui.isMod(e))) {
      e.preventDefault()
      keep()
    }
  }
  return (
    <form class="editor" onSubmit={(e) => (e.preventDefault(), keep())}>
      <textarea ref={area} aria-label={own ? t('editMessage') : t('editAnswer')} value={text} rows={1}
        onInput={(e) => setText(e.currentTarget.value)} onKeyDown={onKeyDown} />
      <div class="row">
        <button type="submit" class="main" disabled={!text.trim()}>{own ? t('saveSend') : t('saveBranch')}</button>
        <button type="button" class="text" onClick={leave}>{t('cancel')}</button>
      </div>
    </form>
  )
}
