import { useEffect, useRef, useState } from 'preact/hooks'
import { commands } from './commands.ts'
import { Dialog } from './dialogs.tsx'
import { t } from './i18n.ts'
import * as store from './store.ts'
import * as ui from './ui.ts'

interface Entry {
  label: string
  hint: string
  run: () => void
}

/** Text without case and accents, to search in. */
export const plain = (text: string) => text.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase()

/** Every word must occur. */
export function matches(label: string, query: string): boolean {
  const text = plain(label)
  return plain(query).split(/\s+/).every((word) => text.includes(word))
}

export function Palette() {
  const close = () => (ui.palette.value = false)
  const after = () => {
    if (!document.querySelector('dialog[open]') && !ui.editing.peek()) ui.focusComposer()
  }
  return (
    <Dialog open={ui.palette.value} close={close} after={after} label={t('palette')} class="palette">
      <Finder close={close} />
    </Dialog>
  )
}

function Finder({ close }: { close: () => void }) {
  const [query, setQuery] = useState('')
  const [at, setAt] = useState(0)
  const listBox = useRef<HTMLUListElement>(null)
  const input = useRef<HTMLInputElement>(null)
  const entries = found(query)
  const chosen = Math.min(at, entries.length - 1)
  useEffect(() => input.current!.focus(), [])
  useEffect(() => listBox.current?.children[chosen]?.scrollIntoView({ block: 'nearest' }), [chosen])
  const run = (entry: Entry | undefined) => {
    if (!entry) return
    // First close, so that what the command opens or focuses is not undone.
    ui.palette.value = false
    setTimeout(() => entry.run())
  }
  const onKeyDown = (e: KeyboardEvent) => {
    if (ui.composing(e)) return
    if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
      e.preventDefault()
      const step = e.key === 'ArrowDown' ? 1 : -1
      setAt((chosen + step + entries.length) % Math.max(1, entries.length))
    } else if (e.key === 'Enter') {
      e.preventDefault()
      run(entries[chosen])
    } else if (e.key === 'Escape') {
      e.preventDefault()
      close()
    }
  }
  return (
    <>
      <input type="text" role="combobox" aria-expanded="true" aria-controls="found" aria-activedescendant={`found-${chosen}`}
        aria-label={t('palette')} placeholder={t('palette')} spellcheck={false} ref={input} value={query}
        onInput={(e) => (setQuery(e.currentTarget.value), setAt(0))} onKeyDown={onKeyDown} />
      <ul id="found" role="listbox" aria-label={t('palette')} ref={listBox}>
        {entries.map((entry, i) => (
          <li key={i} id={`found-${i}`} role="option" aria-selected={i === chosen} onClick={() => run(entry)} onMouseMove={() => setAt(i)}>
            <span>{entry.label}</span>
            {entry.hint && <kbd>{entry.hint}</kbd>}
          </li>
        ))}
      </ul>
      {entries.length === 0 && <p class="aside">{t('paletteNone')}</p>}
    </>
  )
}

function found(query: string): Entry[] {
  const own = commands().map((c): Entry => ({ label: c.label, hint: c.keys ?? '', run: c.run }))
  const rest = store.summaries.value.map((s): Entry => ({
    label: s.title || t('untitled'),
    hint: '',
    run: () => void store.openConversation(s.id).then(ui.focusComposer),
  }))
  return [...own, ...rest].filter((e) => matches(e.label, query)).slice(0, 50)
}
