// Files to pictures that can be kept and sent.
import type { Picture } from './types.ts'

/** What the server reads. */
export const TYPES = ['image/png', 'image/jpeg', 'image/webp']
/** Pictures in one message. */
export const MOST = 8
/** A larger file is drawn anew: models see less than a photograph has, and every turn sends it again. */
const BYTES = 1 << 20
const SIDE = 1600

/** What a picture's URL may be, also in a file that is imported. */
export const isPicture = (url: string) => /^data:image\/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}$/.test(url)

/** The files among what is pasted or dropped that are pictures. */
export function picturesIn(data: DataTransfer | null): File[] {
  return [...(data?.files ?? [])].filter((f) => f.type.startsWith('image/'))
}

/** The size that a picture is drawn in, if it has to be smaller. */
export function fit(width: number, height: number): [width: number, height: number] {
  const factor = Math.min(1, SIDE / Math.max(width, height))
  return [Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor))]
}

/** Reads a file; `smaller` says the size if it was drawn anew. Throws if it is no picture. */
export async function readPicture(file: File): Promise<{ picture: Picture; smaller?: [number, number] }> {
  const name = file.name || 'picture'
  if (!TYPES.includes(file.type)) throw new TypeError(file.type)
  const image = await createImageBitmap(file)
  if (file.size <= BYTES) return { picture: { name, url: await dataUrl(file) } }
  const [width, height] = fit(image.width, image.height)
  const canvas = document.createElement('canvas')
  canvas.width = width
  canvas.height = height
  const pen = canvas.getContext('2d')!
  // What is transparent lies on white, as the server has it.
  pen.fillStyle = '#fff'
  pen.fillRect(0, 0, width, height)
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(image, 0, 0, width, height)
  return { picture: { name, url: canvas.toDataURL('image/jpeg', 0.92) }, smaller: [width, height] }
}

function dataUrl(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.onload = () => resolve(String(reader.result))
    reader.onerror = () => reject(reader.error)
    reader.readAsDataURL(file)
  })
}
