import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { attach, onKey } from './commands.ts'
import { Composer } from './composer.tsx'
import { Icon, Mark } from './icons.tsx'
import { t } from './i18n.ts'
import { FailureText } from './failure.tsx'
import { KeyDialog, Options } from './dialogs.tsx'
import { MessageView } from './message.tsx'
import { Notices } from './notice.tsx'
import { Palette } from './palette.tsx'
import { picturesIn } from './pictures.ts'
import { Sidebar } from './sidebar.tsx'
import * as store from './store.ts'
import * as ui from './ui.ts'

export function App() {
  useEffect(() => {
    addEventListener('keydown', onKey)
    return () => removeEventListener('keydown', onKey)
  }, [])
  const c = store.current.value
  useEffect(() => {
    document.title = c.title ? `${c.title} · Lapidary` : 'Lapidary'
  }, [c.title])
  // On a phone the list lies over the text, which then can't be reached.
  const covered = ui.sidebar.value && !ui.wide.matches
  // A picture that is let go beside the field must not replace the page.
  const onDragOver = (e: DragEvent) => e.dataTransfer?.types.includes('Files') && e.preventDefault()
  const onDrop = (e: DragEvent) => {
    if (!e.dataTransfer?.types.includes('Files')) return
    e.preventDefault()
    void attach(picturesIn(e.dataTransfer))
  }
  return (
    <div class={`page${ui.sidebar.value ? ' listed' : ''}`} onDragOver={onDragOver} onDrop={onDrop}>
      <a class="skip" href="#message" onClick={(e) => (e.preventDefault(), ui.focusComposer())}>{t('skip')}</a>
      <Sidebar />
      {covered && <div class="veil" onClick={() => (ui.sidebar.value = false)} />}
      <main inert={covered}>
        <Header />
        <Thread />
        <Composer />
      </main>
      <Options />
      <Palette />
      <KeyDialog />
      <Notices />
    </div>
  )
}

function Header() {
  const label = ui.sidebar.value ? t('hideList') : t('showList')
  return (
    <header>
      <button type="button" class="icon" aria-expanded={ui.sidebar.value} aria-label={label} title={`${label} (Alt L)`}
        onClick={() => (ui.sidebar.value = !ui.sidebar.peek())}>
        <Icon name="menu" />
      </button>
      <h1>{store.current.value.title || t('newChat')}</h1>
      <ModelChoice />
      <button type="button" class="icon" aria-label={t('options')} title={`${t('options')} (Alt O)`}
        onClick={() => (ui.options.value = true)}>
        <Icon name="sliders" />
      </button>
    </header>
  )
}

function ModelChoice() {
  const models = store.models.value
  const chosen = store.current.value.model
  const offered = models.some((m) => m.id === chosen)
  return (
    <select class="model" aria-label={t('model')} value={chosen} disabled={models.length === 0}
      onChange={(e) => store.setModel(e.currentTarget.value)} onFocus={() => void store.refreshModels()}>
      {models.length === 0 && !chosen && <option value="">{t('noModel')}</option>}
      {chosen && !offered && <option value={chosen}>{models.length ? t('modelGone', { id: chosen }) : chosen}</option>}
      {models.map((m) => (
        <option key={m.id} value={m.id}>{m.parent ? t('adapterOf', { id: m.id, parent: m.parent }) : m.id}</option>
      ))}
    </select>
  )
}

/** The messages. Stays at the end while an answer grows, unless the person has scrolled away. */
function Thread() {
  const c = store.current.value
  const messages = store.shown.value
  const scroller = useRef<HTMLDivElement>(null)
  const follows = useRef(true)
  const [away, setAway] = useState(false)
  const toEnd = () => {
    const box = scroller.current
    if (box) box.scrollTop = box.scrollHeight
  }
  const asked = messages.findLast((m) => m.role === 'user')?.id
  useLayoutEffect(() => {
    follows.current = true
    toEnd()
  }, [c.id, asked])
  useLayoutEffect(() => {
    if (follows.current) toEnd()
  })
  const onScroll = () => {
    const box = scroller.current!
    follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < 48
    setAway(!follows.current)
  }
  return (
    <div class="reading">
    <div class="scroll" ref={scroller} onScroll={onScroll}>
      <div class="thread">
        {store.modelsFailure.value && store.modelsFailure.value.code !== 'key' && (
          <FailureText failure={store.modelsFailure.value} retry={() => void store.refreshModels()} />
        )}
        {store.storageFailure.value && <p class="failure">{t('storageFailed', { why: store.storageFailure.value })}</p>}
        {c.system.trim() && messages.length > 0 && (
          <button type="button" class="system" onClick={() => (ui.options.value = true)}>
            <b>{t('system')}</b> <span>{c.system}</span>
          </button>
        )}
        {messages.length === 0 ? <Welcome /> : (
          <ol class="messages">
            {messages.map((m, i) => {
              const alternatives = c.messages.filter((o) => o.parent === m.parent)
              return (
                <MessageView key={m.id} message={m} position={alternatives.indexOf(m)} of={alternatives.length}
                  last={i === messages.length - 1} live={store.running.value?.message === m.id}
                  busy={store.running.value !== null} editing={ui.editing.value === m.id}
                  dissected={ui.dissected.value.has(m.id)}
                  context={store.models.value.find((o) => o.id === m.model)?.context} />
              )
            })}
          </ol>
        )}
      </div>
    </div>
      {away && (
        <button type="button" class="latest" onClick={toEnd} aria-label={t('latest')} title={t('latest')}>
          <Icon name="down" />
        </button>
      )}
    </div>
  )
}

function Welcome() {
  return (
    <div class="welcome">
      <Mark size={56} />
      <p class="lead">{t('welcome')}</p>
      <p>{t('welcomeNote')}</p>
    </div>
  )
}
