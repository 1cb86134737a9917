import { render } from 'preact'
import { App } from './app.tsx'
import { begin } from './store.ts'
import './styles.css'

void begin()
render(<App />, document.getElementById('app')!)
