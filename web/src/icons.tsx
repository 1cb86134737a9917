// Line icons on a 20 × 20 grid, drawn for this page.
const PATHS = {
  menu: 'M3 6h14M3 10h14M3 14h14',
  plus: 'M10 4v12M4 10h12',
  send: 'M10 16V4M5 9l5-5 5 5',
  stop: 'M6 6h8v8H6z',
  copy: 'M7 7V4h9v9h-3M4 7h9v9H4z',
  check: 'M4 11l4 4 8-9',
  edit: 'M4 16l1-4 8.5-8.5 3 3L8 15zM12 5l3 3',
  again: 'M15.5 7A6.3 6.3 0 1 0 16.3 11M16 3v4h-4',
  tokens: 'M3 5h5v4H3zM11 5h6v4h-6zM3 12h7v4H3zM13 12h4v4h-4z',
  left: 'M12 5l-5 5 5 5',
  right: 'M8 5l5 5-5 5',
  down: 'M10 4v12M5 11l5 5 5-5',
  sliders: 'M3 6h7M14 6h3M12 4v4M3 14h3M10 14h7M8 12v4',
  close: 'M5 5l10 10M15 5L5 15',
  trash: 'M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6',
  more: 'M5 10h.01M10 10h.01M15 10h.01',
  branch: 'M6 4v12M6 12c0-3 8-2 8-6M14 6V4M4 16h4M12 4h4',
  picture: 'M3 4h14v12H3zM3 13l4-4 4 4 2-2 4 4M13 7h.01',
  search: 'M9 4a5 5 0 1 0 0 10A5 5 0 0 0 9 4zM13 13l4 4',
} as const

export type IconName = keyof typeof PATHS

export function Icon({ name }: { name: IconName }) {
  return (
    <svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  )
}

/** The mark: a cut stone. */
export function Mark({ size }: { size: number }) {
  return (
    <svg class="mark" viewBox="0 0 32 32" width={size} height={size} aria-hidden="true" focusable="false">
      <path d="M9 4h14l7 8-14 17L2 12zM2 12h28M9 4l3 8 4 17 4-17 3-8M12 12l4-8 4 8" />
    </svg>
  )
}
