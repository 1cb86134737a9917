// Everything the page can do, for the palette and for the keyboard.
import { MOST, readPicture, TYPES } from './pictures.ts'
import { exportText, importText, BadFile } from './transfer.ts'
import { count, language, t } from './i18n.ts'
import { notify } from './notice.tsx'
import * as db from './db.ts'
import * as store from './store.ts'
import * as ui from './ui.ts'

export interface Command {
  label: string
  keys?: string
  run: () => void
}

const lastOf = (role: 'user' | 'assistant') => store.shown.peek().findLast((m) => m.role === role)

export function newChat() {
  store.newConversation()
  if (!ui.wide.matches) ui.sidebar.value = false
  ui.focusComposer()
}

export function editLast() {
  const m = lastOf('user')
  if (m && !store.running.peek()) ui.editing.value = m.id
}

export function regenerateLast() {
  const m = lastOf('assistant')
  if (m) store.regenerate(m)
}

export function toggleTokens() {
  const m = lastOf('assistant')
  if (m) ui.dissect(m.id)
}

/** The commands that make sense now. */
export function commands(): Command[] {
  const answered = lastOf('assistant') !== undefined && !store.running.value
  const all: (Command | false)[] = [
    { label: t('newChat'), keys: 'Alt N', run: newChat },
    store.running.value !== null && { label: t('stop'), keys: 'Esc', run: () => store.stop() },
    answered && { label: t('regenerate'), keys: 'Alt R', run: regenerateLast },
    answered && { label: t('editLast'), keys: '↑', run: editLast },
    answered && { label: t('showTokens'), keys: 'Alt T', run: toggleTokens },
    store.sees.value && { label: t('addPicture'), run: choosePictures },
    { label: t('options'), keys: 'Alt O', run: () => (ui.options.value = true) },
    { label: ui.sidebar.value ? t('hideList') : t('showList'), keys: 'Alt L', run: () => (ui.sidebar.value = !ui.sidebar.peek()) },
    { label: t('nextTheme'), run: store.flipTheme },
    { label: t('otherLanguage'), run: () => store.setLanguage(language.peek() === 'en' ? 'fr' : 'en') },
    answered && { label: t('exportOne'), run: exportOne },
    { label: t('exportAll'), run: () => void exportAll() },
    { label: t('import'), run: importFile },
    { label: t('keyChange'), run: () => (store.asking.value = true) },
  ]
  return all.filter((c) => c !== false)
}

const BY_KEY: Record<string, () => void> = {
  KeyN: newChat,
  KeyR: regenerateLast,
  KeyT: toggleTokens,
  KeyO: () => (ui.options.value = !ui.options.peek()),
  KeyL: () => (ui.sidebar.value = !ui.sidebar.peek()),
}

/** Keys that hold everywhere on the page. */
export function onKey(e: KeyboardEvent) {
  if (ui.composing(e) || e.defaultPrevented) return
  if (ui.isMod(e) && e.code === 'KeyK') {
    e.preventDefault()
    ui.palette.value = !ui.palette.peek()
  } else if (e.altKey && !e.ctrlKey && !e.metaKey && BY_KEY[e.code]) {
    e.preventDefault()
    BY_KEY[e.code]!()
  } else if (e.key === 'Escape' && !document.querySelector('dialog[open]')) {
    if (store.running.peek()) store.stop()
    else if (ui.sidebar.peek() && !ui.wide.matches) ui.sidebar.value = false
  }
}

/** Puts pictures beside what is being written, or says why not. */
export async function attach(files: File[]) {
  if (files.length === 0) return
  if (!store.sees.peek()) return notify(t('blind', { id: store.current.peek().model || t('noModel') }))
  for (const file of files) {
    if (ui.pictures.peek().length >= MOST) return notify(t('picturesMany', { n: MOST }))
    try {
      const { picture, smaller } = await readPicture(file)
      ui.pictures.value = [...ui.pictures.peek(), picture]
      if (smaller) notify(t('pictureSmaller', { name: picture.name, size: smaller.join(' × ') }))
    } catch {
      notify(t('pictureWrong', { name: file.name }))
    }
  }
  ui.focusComposer()
}

export function choosePictures() {
  const input = document.createElement('input')
  input.type = 'file'
  input.multiple = true
  input.accept = TYPES.join()
  input.onchange = () => void attach([...(input.files ?? [])])
  input.click()
}

function download(name: string, text: string) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

const today = () => new Date().toISOString().slice(0, 10)

export function exportOne() {
  download(`lapidary-${today()}.json`, exportText([store.current.peek()]))
}

export async function exportAll() {
  download(`lapidary-all-${today()}.json`, exportText(await db.loadAll()))
}

export function importFile() {
  const input = document.createElement('input')
  input.type = 'file'
  input.accept = '.json,application/json'
  input.onchange = async () => {
    const file = input.files?.[0]
    if (!file) return
    try {
      const conversations = importText(await file.text())
      await store.takeIn(conversations)
      notify(count('imported', conversations.length))
    } catch (e) {
      const why = e instanceof BadFile || e instanceof Error ? e.message : String(e)
      notify(t('importFailed', { why }))
    }
  }
  input.click()
}
