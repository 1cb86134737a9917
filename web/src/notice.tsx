import { signal } from '@preact/signals'
import { t } from './i18n.ts'

interface Notice {
  text: string
  action?: { label: string; run: () => void }
  /** Only told to screen readers. */
  quiet?: boolean
}

const notice = signal<Notice | null>(null)
let timer: ReturnType<typeof setTimeout> | undefined

/** Says something for a few seconds; longer where there is something to click. */
export function notify(text: string, more: Omit<Notice, 'text'> = {}) {
  clearTimeout(timer)
  notice.value = { text, ...more }
  timer = setTimeout(() => (notice.value = null), more.action ? 10_000 : 4_000)
}

export function Notices() {
  const n = notice.value
  return (
    <div class={`notice${n && !n.quiet ? ' seen' : ''}`} role="status">
      {n && <span>{n.text}</span>}
      {n?.action && (
        <button type="button" class="text" onClick={() => (n.action!.run(), (notice.value = null))}>
          {n.action.label}
        </button>
      )}
      {n && !n.quiet && <button type="button" class="text" onClick={() => (notice.value = null)}>{t('close')}</button>}
    </div>
  )
}
