// Server-sent events, as the HTML standard's "Interpreting an event stream" has them.

export interface ServerEvent {
  event: string
  data: string
}

/** Takes text as it arrives, in any pieces, and gives the events that are complete. */
export class EventParser {
  private rest = ''
  private data: string[] = []
  private event = ''
  private begun = false

  push(piece: string): ServerEvent[] {
    let text = this.rest + piece
    if (!this.begun && text.length > 0) {
      this.begun = true
      if (text.startsWith('\uFEFF')) text = text.slice(1)
    }
    const out: ServerEvent[] = []
    let from = 0
    for (;;) {
      const end = lineEnd(text, from)
      if (!end) break
      this.line(text.slice(from, end.at), out)
      from = end.next
    }
    this.rest = text.slice(from)
    return out
  }

  private line(line: string, out: ServerEvent[]) {
    if (line === '') {
      if (this.data.length > 0) out.push({ event: this.event || 'message', data: this.data.join('\n') })
      this.data = []
      this.event = ''
      return
    }
    const colon = line.indexOf(':')
    if (colon === 0) return // a comment, used to keep the connection alive
    const field = colon < 0 ? line : line.slice(0, colon)
    let value = colon < 0 ? '' : line.slice(colon + 1)
    if (value.startsWith(' ')) value = value.slice(1)
    if (field === 'data') this.data.push(value)
    else if (field === 'event') this.event = value
  }
}

/** Lines end with LF, CR LF or CR; a CR at the very end may be half of a CR LF still to come. */
function lineEnd(text: string, from: number): { at: number; next: number } | null {
  for (let i = from; i < text.length; i++) {
    const c = text[i]
    if (c === '\n') return { at: i, next: i + 1 }
    if (c === '\r') {
      if (i + 1 === text.length) return null
      return { at: i, next: text[i + 1] === '\n' ? i + 2 : i + 1 }
    }
  }
  return null
}
