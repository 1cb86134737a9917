import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { attach, choosePictures, editLast } from './commands.ts'
import { Icon } from './icons.tsx'
import { t } from './i18n.ts'
import { notify } from './notice.tsx'
import { picturesIn } from './pictures.ts'
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
  const nothing = !ui.draft.value.trim() && ui.pictures.value.length === 0
  const send = () => {
    if (running || nothing) return
    store.send(ui.draft.peek(), ui.pictures.peek())
    ui.draft.value = ''
    ui.pictures.value = []
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
  const onPaste = (e: ClipboardEvent) => {
    const files = picturesIn(e.clipboardData)
    if (files.length === 0) return
    e.preventDefault()
    void attach(files)
  }
  return (
    <form class="composer" onSubmit={(e) => (e.preventDefault(), send())}>
      <Attached />
      <div class="field">
        <PictureButton />
        <textarea id="message" ref={area} rows={1} aria-label={t('message')} placeholder={t('placeholder')}
          value={ui.draft.value} onInput={(e) => (ui.draft.value = e.currentTarget.value)} onKeyDown={onKeyDown} onPaste={onPaste} />
        {running ? (
          <button type="button" class="round" onClick={() => store.stop()} aria-label={t('stop')} title={`${t('stop')} (Esc)`}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="round" disabled={nothing} aria-label={t('send')} title={`${t('send')} (Enter)`}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <p class="hint" aria-hidden="true">{t('keysHint', { send: 'Enter', line: 'Shift Enter', palette: `${ui.MOD} K` })}</p>
      <p class="unseen" role="status">{running ? t('answering') : store.shown.value.at(-1)?.finish ? t('answered') : ''}</p>
    </form>
  )
}

/** The pictures that go with the message, each with a way out. */
function Attached() {
  const all = ui.pictures.value
  if (all.length === 0) return null
  const remove = (at: number) => {
    ui.pictures.value = ui.pictures.peek().filter((_, i) => i !== at)
    ui.focusComposer()
  }
  return (
    <ul class="pictures" aria-label={t('pictures')}>
      {all.map((p, i) => (
        <li key={i}>
          <img src={p.url} alt={p.name} />
          <button type="button" class="icon" aria-label={t('pictureRemove', { name: p.name })} title={t('pictureRemove', { name: p.name })} onClick={() => remove(i)}>
            <Icon name="close" />
          </button>
        </li>
      ))}
    </ul>
  )
}

/** Says why, where the model can't see: a button that can't be reached could not. */
function PictureButton() {
  const sees = store.sees.value
  const why = t('blind', { id: store.current.value.model || t('noModel') })
  return (
    <button type="button" class="icon" aria-label={t('addPicture')} aria-disabled={!sees} title={sees ? t('addPicture') : why}
      onClick={() => (sees ? choosePictures() : notify(why))}>
      <Icon name="picture" />
    </button>
  )
}
