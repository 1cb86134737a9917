import { CopyButton } from './copy.tsx'

/** A block of code with its language and a button that copies it. */
export function CodeBlock({ code, language }: { code: string; language: string }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{language}</span>
        <CopyButton text={code} what="copyCode" />
      </figcaption>
      <pre tabIndex={0}><code>{code}</code></pre>
    </figure>
  )
}
