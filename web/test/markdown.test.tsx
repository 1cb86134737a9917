import { renderToString } from 'preact-render-to-string'
import { expect, test } from 'vitest'
import { render, safeHref } from '../src/markdown.tsx'

const html = (text: string) => renderToString(<div>{render(text)}</div>)
/** The names of all elements that a text becomes. */
const elements = (text: string) => new Set([...html(text).matchAll(/<([a-z]\w*)/g)].map((m) => m[1]!))

test('the usual forms', () => {
  expect(html('# A\n\n*b* **c** ~~d~~ `e<f`')).toBe(
    '<div><h3>A</h3><p><em>b</em> <strong>c</strong> <del>d</del> <code>e&lt;f</code></p></div>',
  )
  expect(html('3. x\n4. y')).toBe('<div><ol start="3"><li>x</li><li>y</li></ol></div>')
  expect(html('> q')).toBe('<div><blockquote><p>q</p></blockquote></div>')
  expect(html('|a|\n|-:|\n|1|')).toContain('<td class="to-right">1</td>')
  expect(html('```js\nlet a = "<b>"\n```')).toContain('<code>let a = "&lt;b></code>'.replace('"&lt;b>', '&quot;&lt;b>&quot;'))
  expect(html('- [x] done')).toContain('type="checkbox"')
})

test('an unfinished block, as in a stream, is shown', () => {
  expect(html('```py\nprint(1')).toContain('<code>print(1</code>')
  expect(html('**bo')).toBe('<div><p>**bo</p></div>')
})

test('HTML stays text', () => {
  const attacks = [
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    'a <b onmouseover="alert(1)">b</b>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '<svg><a xlink:href="javascript:alert(1)"><text>x</text></a></svg>',
    '<!-- --><style>*{display:none}</style>',
    '[x](javascript:alert(1))', '[x](JaVaScRiPt:alert(1))', '[x](&#106;avascript:alert(1))',
    '[x](data:text/html,<script>alert(1)</script>)', '[x](vbscript:x)', '[x](\tjavascript:alert(1))',
    '![x](javascript:alert(1))', '<javascript:alert(1)>', '[x]: javascript:alert(1)\n\n[x]',
    '`<script>`', '```html\n<script>alert(1)</script>\n```', '# <script>alert(1)</script>',
    '|<img src=x>|\n|-|\n|<script>|', '&lt;script&gt;alert(1)&lt;/script&gt;', '[a](https://x/"onclick="alert(1))',
  ]
  const allowed = /^(div|p|a|code|pre|figure|figcaption|span|button|svg|path|h3|table|thead|tbody|tr|th|td)$/
  for (const attack of attacks) {
    for (const name of elements(attack)) expect(name, attack).toMatch(allowed)
    const out = html(attack)
    // `svg` is only ever our own icon; no element has a handler or an address that runs.
    expect(out, attack).not.toMatch(/<[^>]*\son\w+=/)
    expect(out, attack).not.toMatch(/(href|src)="(?!https:)/i)
  }
})

test('pictures are links, never loaded', () => {
  expect(html('![cat](https://example.org/c.png)')).toBe(
    '<div><p><a href="https://example.org/c.png" target="_blank" rel="noopener noreferrer nofollow">cat</a></p></div>',
  )
})

test('links lead to the web or to mail', () => {
  expect(safeHref('https://a.example/b')).toBe('https://a.example/b')
  expect(safeHref('mailto:a@b.example')).toBe('mailto:a@b.example')
  for (const href of ['/v1/models', '#x', '//a.example', 'file:///etc/passwd', 'blob:https://a/b', ' javascript:x', 'about:blank']) {
    expect(safeHref(href)).toBeNull()
  }
})

test('deep nesting and long lines end, in time', () => {
  const start = performance.now()
  for (const text of ['>'.repeat(5000), '- '.repeat(3000), '['.repeat(20000), '*'.repeat(20000), '_a'.repeat(10000), '`'.repeat(20001), '<'.repeat(20000), '|'.repeat(20000)]) {
    expect(html(text).length).toBeGreaterThan(0)
  }
  expect(performance.now() - start).toBeLessThan(10_000)
})

test('character references become characters', () => {
  expect(html('1 &lt; 2 &amp; 3 &#233; &#xe9; &bogus;')).toBe('<div><p>1 &lt; 2 &amp; 3 é é &amp;bogus;</p></div>')
})
