import { useState } from 'preact/hooks'
import { newChat } from './commands.ts'
import { Icon, Mark } from './icons.tsx'
import { t, type Key } from './i18n.ts'
import { notify } from './notice.tsx'
import * as store from './store.ts'
import type { Summary } from './types.ts'
import * as ui from './ui.ts'

const DAY = 86_400_000

/** Conversations under the day they were last touched. */
export function byAge(list: Summary[], now: number): [Key, Summary[]][] {
  const midnight = new Date(now).setHours(0, 0, 0, 0)
  const groups: [Key, Summary[]][] = [['today', []], ['yesterday', []], ['week', []], ['older', []]]
  for (const s of list) {
    const i = s.updated >= midnight ? 0 : s.updated >= midnight - DAY ? 1 : s.updated >= midnight - 6 * DAY ? 2 : 3
    groups[i]![1].push(s)
  }
  return groups.filter(([, list]) => list.length > 0)
}

export function Sidebar() {
  const open = ui.sidebar.value
  return (
    <nav class="sidebar" aria-label={t('conversations')} inert={!open}>
      <div class="brand"><Mark size={22} /><span>Lapidary</span></div>
      <div class="row">
        <button type="button" class="new" onClick={newChat} title="Alt N"><Icon name="plus" /> {t('newChat')}</button>
        <button type="button" class="icon" onClick={() => (ui.palette.value = true)} aria-label={t('palette')} title={`${t('palette')} (${ui.MOD} K)`}>
          <Icon name="search" />
        </button>
      </div>
      <div class="list">
        {store.summaries.value.length === 0 && <p class="aside">{t('noConversations')}</p>}
        {byAge(store.summaries.value, Date.now()).map(([age, list]) => (
          <section key={age}>
            <h2>{t(age)}</h2>
            <ul>{list.map((s) => <Entry key={s.id} summary={s} />)}</ul>
          </section>
        ))}
      </div>
    </nav>
  )
}

function Entry({ summary: s }: { summary: Summary }) {
  const [naming, setNaming] = useState(false)
  const here = store.current.value.id === s.id
  const title = s.title || t('untitled')
  const open = async () => {
    await store.openConversation(s.id)
    if (!ui.wide.matches) ui.sidebar.value = false
  }
  const remove = async () => {
    const undo = await store.removeConversation(s.id)
    notify(t('removed', { title }), { action: { label: t('undo'), run: () => void undo() } })
    ui.focusComposer()
  }
  if (naming) return <li><Naming summary={s} done={() => setNaming(false)} /></li>
  return (
    <li class={here ? 'here' : undefined}>
      <button type="button" class="entry" aria-current={here ? 'page' : undefined} onClick={() => void open()}
        onDblClick={() => setNaming(true)} title={title}>
        {title}
        {store.runs.value[s.id] && <span class="dot" aria-label={t('answering')} role="img" />}
      </button>
      <span class="tools">
        <button type="button" class="icon" aria-label={`${t('rename')}: ${title}`} title={t('rename')}
          onClick={async () => ((await store.openConversation(s.id)) && setNaming(true))}>
          <Icon name="edit" />
        </button>
        <button type="button" class="icon" aria-label={`${t('remove')}: ${title}`} title={t('remove')} onClick={() => void remove()}>
          <Icon name="trash" />
        </button>
      </span>
    </li>
  )
}

function Naming({ summary: s, done }: { summary: Summary; done: () => void }) {
  const keep = (title: string) => {
    store.rename(s.id, title)
    done()
  }
  return (
    <input class="naming" aria-label={t('rename')} defaultValue={s.title} maxLength={200}
      ref={(e) => {
        if (e && document.activeElement !== e) e.select()
      }}
      onKeyDown={(e) => {
        if (e.key === 'Enter' && !ui.composing(e)) keep(e.currentTarget.value)
        if (e.key === 'Escape') done()
        e.stopPropagation()
      }}
      onBlur={(e) => keep(e.currentTarget.value)} />
  )
}
