import type { ComponentChildren } from 'preact'
import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { exportAll, exportOne, importFile } from './commands.ts'
import { Icon } from './icons.tsx'
import { language, t, type Key } from './i18n.ts'
import * as store from './store.ts'
import type { Sampling } from './types.ts'
import * as ui from './ui.ts'

interface DialogProps {
  open: boolean
  close: () => void
  /** What to do when it is closed and the focus is back where it was. */
  after?: () => void
  label: string
  class: string
  children: ComponentChildren
}

/** A modal dialog: the browser keeps the focus in it, and Escape or a click beside it closes it. */
export function Dialog({ open, close, after, label, class: name, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null)
  const was = useRef(false)
  // Not a later effect: the next key may be on its way when a dialog closes.
  useLayoutEffect(() => {
    const d = ref.current!
    if (open && !d.open) {
      d.showModal()
      // Its first field would open a phone's keyboard, its first button looks like the one to press.
      if (name === 'side') d.focus()
    }
    if (!open && was.current) {
      d.close()
      after?.()
      ui.placeCaret()
    }
    was.current = open
  }, [open])
  // Escape closes it as the page's own buttons do: before the next key, and not some time after it.
  const onCancel = (e: Event) => {
    e.preventDefault()
    close()
  }
  return (
    <dialog ref={ref} class={name} aria-label={label} tabIndex={-1} onCancel={onCancel} onClose={close}
      onClick={(e) => e.target === ref.current && close()}>
      {open && children}
    </dialog>
  )
}

export function KeyDialog() {
  const [value, setValue] = useState('')
  const [keep, setKeep] = useState(false)
  const [wrong, setWrong] = useState(false)
  const submit = async (e: Event) => {
    e.preventDefault()
    await store.useKey(value.trim(), keep)
    const refused = store.modelsFailure.peek()?.code === 'key'
    setWrong(refused)
    store.asking.value = refused
    if (!refused) setValue('')
  }
  return (
    <Dialog open={store.asking.value} close={() => (store.asking.value = false)} label={t('keyTitle')} class="small">
      <form onSubmit={submit}>
        <h2>{t('keyTitle')}</h2>
        <p>{t('keyText')}</p>
        <label>
          {t('key')}
          <input type="password" autocomplete="off" spellcheck={false} required value={value} aria-invalid={wrong}
            aria-describedby="key-wrong" onInput={(e) => setValue(e.currentTarget.value)} />
        </label>
        <p id="key-wrong" class="wrong" role="alert">{wrong && t('keyWrong')}</p>
        <label class="check"><input type="checkbox" checked={keep} onChange={(e) => setKeep(e.currentTarget.checked)} /> {t('keyKeep')}</label>
        <div class="row">
          <button type="submit" class="main">{t('keyUse')}</button>
          <button type="button" class="text" onClick={() => (store.asking.value = false)}>{t('cancel')}</button>
        </div>
      </form>
    </Dialog>
  )
}

/** What a field of numbers accepts. `whole`: no fractions. */
interface Range {
  min: number
  max: number
  step: number
  whole?: boolean
}

type NumberKey = Exclude<keyof Sampling, 'stop' | 'reasoning_effort'>

const FIELDS: [NumberKey, Range][] = [
  ['temperature', { min: 0, max: 2, step: 0.1 }],
  ['max_tokens', { min: 1, max: 1_000_000, step: 1, whole: true }],
  ['top_p', { min: 0, max: 1, step: 0.05 }],
  ['top_k', { min: 0, max: 1_000_000, step: 1, whole: true }],
  ['min_p', { min: 0, max: 1, step: 0.01 }],
  ['seed', { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, whole: true }],
  ['frequency_penalty', { min: -2, max: 2, step: 0.1 }],
  ['presence_penalty', { min: -2, max: 2, step: 0.1 }],
]

export function Options() {
  const close = () => (ui.options.value = false)
  return (
    <Dialog open={ui.options.value} close={close} after={ui.focusComposer} label={t('options')} class="side">
      <div class="head">
        <h2>{t('options')}</h2>
        <button type="button" class="icon" onClick={close} aria-label={t('close')}><Icon name="close" /></button>
      </div>
      <SystemField />
      {store.thinks.value && <ThinkField />}
      <fieldset class="sampling">
        <legend>{t('sampling')}</legend>
        <p class="help">{t('samplingHelp')}</p>
        <div class="pairs">
          {FIELDS.map(([key, range]) => <NumberField key={key} name={key} range={range} />)}
        </div>
        <StopField />
        <AlternativesField />
      </fieldset>
      <Appearance />
      <fieldset>
        <legend>{t('data')}</legend>
        <div class="row">
          <button type="button" onClick={exportOne} disabled={store.current.value.messages.length === 0}>{t('exportOne')}</button>
          <button type="button" onClick={() => void exportAll()}>{t('exportAll')}</button>
          <button type="button" onClick={importFile}>{t('import')}</button>
        </div>
      </fieldset>
    </Dialog>
  )
}

function SystemField() {
  return (
    <label>
      {t('system')}
      <textarea rows={4} value={store.current.value.system} aria-describedby="system-help"
        onInput={(e) => store.setSystem(e.currentTarget.value)} />
      <small id="system-help">{t('systemHelp')}</small>
    </label>
  )
}

/** Whether the model thinks before it answers; or as the server has it. */
function ThinkField() {
  const { reasoning_effort: now, ...rest } = store.current.value.sampling
  const set = (value: string) =>
    store.setSampling(value === 'none' || value === 'medium' ? { ...rest, reasoning_effort: value } : rest)
  return (
    <label>
      {t('think')}
      <select value={now ?? ''} onChange={(e) => set(e.currentTarget.value)}>
        <option value="">{t('thinkDefault')}</option>
        <option value="medium">{t('thinkOn')}</option>
        <option value="none">{t('thinkOff')}</option>
      </select>
    </label>
  )
}

/** A number, or nothing. What is out of range is said and not taken. */
function NumberField({ name, range }: { name: NumberKey; range: Range }) {
  const now = store.current.value.sampling[name]
  const [text, setText] = useState(now === undefined ? '' : String(now))
  const value = text.trim() === '' ? undefined : Number(text)
  const wrong = value !== undefined && !(value >= range.min && value <= range.max && (!range.whole || Number.isInteger(value)))
  const take = (text: string) => {
    setText(text)
    const { [name]: _, ...rest } = store.current.peek().sampling
    const value = Number(text)
    const fits = text.trim() !== '' && value >= range.min && value <= range.max && (!range.whole || Number.isInteger(value))
    if (text.trim() === '' || fits) store.setSampling(fits ? { ...rest, [name]: value } : rest)
  }
  return (
    <label>
      {t(name)}
      <input type="number" inputMode={range.whole ? 'numeric' : 'decimal'} min={range.min} max={range.max} step={range.whole ? 1 : 'any'}
        value={text} aria-invalid={wrong} aria-describedby={`${name}-help`} onInput={(e) => take(e.currentTarget.value)} />
      <small id={`${name}-help`} class={wrong ? 'wrong' : undefined}>
        {wrong ? t('outOfRange', { min: range.min, max: range.max }) : t(`${name}Help` as Key)}
      </small>
    </label>
  )
}

/** One stop string a line, with `\n` and `\t` for what a line can't hold. */
export function stopsFrom(text: string): string[] {
  return text.split('\n').filter((line) => line !== '').map((line) => line.replace(/\\([nt\\])/g, (_, c) => (c === 'n' ? '\n' : c === 't' ? '\t' : '\\')))
}

export function stopsTo(stops: string[]): string {
  return stops.map((s) => s.replace(/\\/g, '\\\\').replace(/\n/g, '\\n').replace(/\t/g, '\\t')).join('\n')
}

function StopField() {
  const [text, setText] = useState(stopsTo(store.current.value.sampling.stop ?? []))
  const take = (text: string) => {
    setText(text)
    const { stop: _, ...rest } = store.current.peek().sampling
    const stops = stopsFrom(text)
    store.setSampling(stops.length > 0 ? { ...rest, stop: stops } : rest)
  }
  return (
    <label>
      {t('stopStrings')}
      <textarea rows={2} value={text} aria-describedby="stop-help" spellcheck={false} onInput={(e) => take(e.currentTarget.value)} />
      <small id="stop-help">{t('stopHelp')}</small>
    </label>
  )
}

function AlternativesField() {
  return (
    <label>
      {t('alternatives')}
      <input type="number" min={0} max={20} value={store.alternatives.value} aria-describedby="alternatives-help"
        onInput={(e) => {
          const n = e.currentTarget.valueAsNumber
          if (Number.isInteger(n) && n >= 0 && n <= 20) store.alternatives.value = n
        }} />
      <small id="alternatives-help">{t('alternativesHelp')}</small>
    </label>
  )
}

function Appearance() {
  return (
    <fieldset>
      <legend>{t('appearance')}</legend>
      <div class="pairs">
        <label>
          {t('theme')}
          <select value={store.theme.value} onChange={(e) => (store.theme.value = e.currentTarget.value as store.Theme)}>
            <option value="auto">{t('themeAuto')}</option>
            <option value="light">{t('themeLight')}</option>
            <option value="dark">{t('themeDark')}</option>
          </select>
        </label>
        <label>
          {t('language')}
          <select value={language.value} onChange={(e) => store.setLanguage(e.currentTarget.value as 'en' | 'fr')}>
            <option value="en" lang="en">English</option>
            <option value="fr" lang="fr">Français</option>
          </select>
        </label>
      </div>
    </fieldset>
  )
}
