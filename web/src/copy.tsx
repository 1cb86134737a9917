import { useState } from 'preact/hooks'
import { t, type Key } from './i18n.ts'
import { Icon } from './icons.tsx'
import { notify } from './notice.tsx'

/** Copies, also where the page has no TLS and the browser offers no clipboard. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = document.createElement('textarea')
    area.value = text
    area.className = 'unseen'
    // Inside an open dialog, elements outside it can't take the focus.
    const host = document.querySelector('dialog[open]') ?? document.body
    host.append(area)
    area.select()
    const done = document.execCommand('copy')
    area.remove()
    return done
  }
}

export function CopyButton({ text, what }: { text: string; what: Key }) {
  const [done, setDone] = useState(false)
  const copy = async () => {
    if (!(await copyText(text))) return notify(t('copyFailed'))
    notify(t('copied'), { quiet: true })
    setDone(true)
    setTimeout(() => setDone(false), 1500)
  }
  return (
    <button type="button" class="icon" onClick={copy} title={t(what)} aria-label={t(what)}>
      <Icon name={done ? 'check' : 'copy'} />
    </button>
  )
}
