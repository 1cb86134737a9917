// What is open on the screen, and nothing that is kept.
import { signal } from '@preact/signals'
import type { Picture } from './types.ts'

/** Wide enough for the list of conversations beside the text. */
export const wide = matchMedia('(min-width: 56rem)')
export const sidebar = signal(wide.matches)
export const options = signal(false)
export const palette = signal(false)
/** The message that is being edited. */
export const editing = signal<string | null>(null)
/** The messages whose tokens are shown. */
export const dissected = signal<ReadonlySet<string>>(new Set())
/** What stands in the message field. */
export const draft = signal('')
/** The pictures beside it. */
export const pictures = signal<Picture[]>([])

wide.addEventListener('change', () => (sidebar.value = wide.matches))

export function dissect(id: string, on = !dissected.peek().has(id)) {
  const next = new Set(dissected.peek())
  if (on) next.add(id)
  else next.delete(id)
  dissected.value = next
}

export function focusComposer() {
  document.getElementById('message')?.focus()
}

/**
 * Puts the caret where the focus is. A browser that closes a dialog gives the focus back and leaves
 * the caret behind, in a field that is not there any more: keys come and nothing is written.
 */
export function placeCaret() {
  const at = document.activeElement
  if (at instanceof HTMLTextAreaElement) at.setSelectionRange(at.selectionStart, at.selectionEnd)
}

const mac = /Mac|iPhone|iPad/.test(navigator.platform)
export const MOD = mac ? '⌘' : 'Ctrl'
export const isMod = (e: KeyboardEvent) => (mac ? e.metaKey : e.ctrlKey) && !e.altKey

/** A key press inside an input method's composition is not for us. */
export const composing = (e: KeyboardEvent) => e.isComposing || e.keyCode === 229
/** Where fingers write, Enter starts a line and the button sends. */
export const touch = matchMedia('(pointer: coarse)')
