import { Component, h, type ComponentType, type FunctionComponent } from 'preact'

/** Renders again only when a property is another value. */
export function memo<P extends object>(inner: FunctionComponent<P>): ComponentType<P> {
  return class extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>) {
      const now = this.props as Record<string, unknown>
      const then = next as Record<string, unknown>
      return Object.keys({ ...now, ...then }).some((key) => now[key] !== then[key])
    }
    override render(props: P) {
      return h(inner as FunctionComponent<object>, props)
    }
  }
}
