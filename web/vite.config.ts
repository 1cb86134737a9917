import { defineConfig } from 'vite'

// `npm run dev` shows the page from source and sends the API's paths to a running `lapidary serve`.
const server = process.env.LAPIDARY_URL ?? 'http://127.0.0.1:8080'

/** The script runs before the first paint, so that the chosen colours are the first ones seen. */
const early = {
  name: 'early-script',
  transformIndexHtml: (html: string) =>
    html.replace('<script type="module" crossorigin', '<script type="module" blocking="render"').replace(' crossorigin href', ' href'),
}

export default defineConfig({
  base: './',
  plugins: [early],
  build: {
    target: 'es2022',
    modulePreload: false,
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    rollupOptions: {
      output: {
        // Fixed names: the server sends an ETag, so that a new build is seen at once.
        entryFileNames: 'app.js',
        assetFileNames: 'app[extname]',
        codeSplitting: false,
      },
    },
  },
  server: { proxy: { '/v1': server, '/health': server, '/tokenize': server } },
  // @ts-expect-error: vitest reads this key; vite's own type does not know it.
  test: { include: ['test/**/*.test.{ts,tsx}'] },
})
