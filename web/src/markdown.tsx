// Markdown to elements. `marked` only takes the text apart; what is shown is built here as elements and
// text nodes, never as HTML, so that nothing in a model's answer can become markup or a script.
import { lexer, type Token, type Tokens } from 'marked'
import type { ComponentChildren, JSX } from 'preact'
import { memo } from './memo.ts'
import { CodeBlock } from './code.tsx'

/** Deeper nesting than any person writes is shown as it stands. */
const MAX_DEPTH = 32

export const Markdown = memo(function Markdown({ text }: { text: string }) {
  return <div class="prose">{render(text)}</div>
})

export function render(text: string): ComponentChildren {
  try {
    return blocks(lexer(text, { gfm: true, breaks: false }), 0)
  } catch {
    return <p class="plain">{text}</p> // nested so deeply that the lexer ran out of stack
  }
}

function blocks(tokens: Token[], depth: number): ComponentChildren {
  return tokens.map((token, i) => block(token, i, depth))
}

function block(token: Token, key: number, depth: number): ComponentChildren {
  if (depth > MAX_DEPTH) return token.raw
  switch (token.type) {
    case 'space':
    case 'def':
    case 'checkbox':
      return null
    case 'heading': {
      // The page's own headings are h1 and h2.
      const Heading = `h${Math.min(6, (token as Tokens.Heading).depth + 2)}` as 'h3'
      return <Heading key={key}>{inline(token.tokens ?? [], depth)}</Heading>
    }
    case 'paragraph':
      return <p key={key}>{inline(token.tokens ?? [], depth)}</p>
    case 'code':
      return <CodeBlock key={key} code={token.text} language={(token.lang ?? '').split(/\s/)[0] ?? ''} />
    case 'blockquote':
      return <blockquote key={key}>{blocks(token.tokens ?? [], depth + 1)}</blockquote>
    case 'hr':
      return <hr key={key} />
    case 'list':
      return list(token as Tokens.List, key, depth + 1)
    case 'table':
      return table(token as Tokens.Table, key, depth + 1)
    case 'html':
      return <p key={key} class="plain">{token.raw.trimEnd()}</p>
    default:
      return span(token, key, depth)
  }
}

function list(token: Tokens.List, key: number, depth: number) {
  const items = token.items.map((item, i) => (
    <li key={i} class={item.task ? 'task' : undefined}>
      {item.task && <input type="checkbox" checked={item.checked ?? false} disabled aria-label={item.checked ? '✓' : '–'} />}
      {blocks(item.tokens, depth)}
    </li>
  ))
  if (!token.ordered) return <ul key={key}>{items}</ul>
  return <ol key={key} start={typeof token.start === 'number' ? token.start : 1}>{items}</ol>
}

function table(token: Tokens.Table, key: number, depth: number) {
  const cell = (Cell: 'th' | 'td') => (c: Tokens.TableCell, i: number) => (
    <Cell key={i} class={c.align ? `to-${c.align}` : undefined}>{inline(c.tokens, depth)}</Cell>
  )
  return (
    <div key={key} class="table" tabIndex={0} role="group">
      <table>
        <thead><tr>{token.header.map(cell('th'))}</tr></thead>
        <tbody>{token.rows.map((row, i) => <tr key={i}>{row.map(cell('td'))}</tr>)}</tbody>
      </table>
    </div>
  )
}

function inline(tokens: Token[], depth: number): ComponentChildren {
  return tokens.map((token, i) => span(token, i, depth + 1))
}

function span(token: Token, key: number, depth: number): ComponentChildren {
  if (depth > MAX_DEPTH) return token.raw
  switch (token.type) {
    case 'strong':
      return <strong key={key}>{inline(token.tokens ?? [], depth)}</strong>
    case 'em':
      return <em key={key}>{inline(token.tokens ?? [], depth)}</em>
    case 'del':
      return <del key={key}>{inline(token.tokens ?? [], depth)}</del>
    case 'codespan':
      return <code key={key}>{token.text}</code>
    case 'br':
      return <br key={key} />
    case 'link':
      return <Link key={key} href={token.href}>{inline(token.tokens ?? [], depth)}</Link>
    case 'image':
      // Never loaded: a picture's address can carry what was said to whoever serves it.
      return <Link key={key} href={token.href}>{token.text || token.href}</Link>
    case 'text':
      return token.tokens ? inline(token.tokens, depth) : entities(token.text)
    case 'escape':
      return token.text
    case 'checkbox':
      return null
    default:
      return token.raw
  }
}

/** A link, if it leads to a place that a click may open; otherwise its text. */
function Link({ href, children }: { href: string; children: ComponentChildren }): JSX.Element {
  const safe = safeHref(href)
  if (!safe) return <>{children}</>
  return <a href={safe} target="_blank" rel="noopener noreferrer nofollow">{children}</a>
}

/** Absolute web and mail addresses alone: no `javascript:`, `data:` or address within this page. */
export function safeHref(href: string): string | null {
  try {
    const url = new URL(href)
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null
  } catch {
    return null
  }
}

const NAMED: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00A0' }

/** The character references that models write; the text stays text. */
function entities(text: string): string {
  if (!text.includes('&')) return text
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,4}));/gi, (whole, dec, hex, name) => {
    if (name) return NAMED[name] ?? whole
    const code = dec ? Number(dec) : parseInt(hex, 16)
    return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000) ? String.fromCodePoint(code) : whole
  })
}
