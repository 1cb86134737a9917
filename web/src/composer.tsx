import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { editLast } from './commands.ts'
import { Icon } from './icons.tsx'
import { t } from './i18n.ts'
import * as store from './store.ts'
import * as ui from './ui.ts'

/** Makes a text field as high as its text, up to what the style sheet allows. */
export function grow(area: HTMLTextAreaElement | null) {
  if (!area) return
  area.style.height = 'auto'
  area.style.height = `${area.scrollHeight + 2}px`
}

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null)
  const running = store.running.value !== null
  const id = store.current.value.id
  useLayoutEffect(() => grow(area.current), [ui.draft.value])
  useEffect(() => {
    if (!ui.touch.matches) area.current?.focus()
  }, [id])
  const send = () => {
    if (running || !ui.draft.peek().trim()) return
    store.send(ui.draft.peek())
    ui.draft.value = ''
    area.current?.focus()
  }
  const onKeyDown = (e: KeyboardEvent) => {
    if (ui.composing(e)) return
    if (e.key === 'Enter' && !e.shiftKey && (!ui.touch.matches || ui.isMod(e))) {
      e.preventDefault()
      send()
    } else if (e.key === 'ArrowUp' && ui.draft.peek() === '' && store.shown.peek().length > 0) {
      e.preventDefault()
      editLast()
    }
  }
  return (
    <form class="composer" onSubmit={(e) => (e.preventDefault(), send())}>
      <div class="field">
        <textarea id="message" ref={area} rows={1} aria-label={t('message')} placeholder={t('placeholder')}
          value={ui.draft.value} onInput={(e) => (ui.draft.value = e.currentTarget.value)} onKeyDown={onKeyDown} />
        {running ? (
          <button type="button" class="round" onClick={() => store.stop()} aria-label={t('stop')} title={`${t('stop')} (Esc)`}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="round" disabled={!ui.draft.value.trim()} aria-label={t('send')} title={`${t('send')} (Enter)`}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <p class="hint" aria-hidden="true">{t('keysHint', { send: 'Enter', line: 'Shift Enter', palette: `${ui.MOD} K` })}</p>
      <p class="unseen" role="status">{running ? t('answering') : store.shown.value.at(-1)?.finish ? t('answered') : ''}</p>
    </form>
  )
}
