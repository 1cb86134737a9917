// Conversations in IndexedDB: one store for the list, one for the whole conversations.
import type { Conversation, Summary } from './types.ts'

let opened: Promise<IDBDatabase> | undefined

function open(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('lapidary', 1)
    request.onupgradeneeded = () => {
      request.result.createObjectStore('summaries', { keyPath: 'id' })
      request.result.createObjectStore('conversations', { keyPath: 'id' })
    }
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
  return opened
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

async function write(work: (summaries: IDBObjectStore, conversations: IDBObjectStore) => void): Promise<void> {
  const db = await open()
  const transaction = db.transaction(['summaries', 'conversations'], 'readwrite')
  work(transaction.objectStore('summaries'), transaction.objectStore('conversations'))
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve()
    transaction.onabort = () => reject(transaction.error)
  })
}

export function summaryOf(c: Conversation): Summary {
  return { id: c.id, title: c.title, updated: c.updated }
}

/** All conversations, the latest first. */
export async function list(): Promise<Summary[]> {
  const store = (await open()).transaction('summaries').objectStore('summaries')
  const all: Summary[] = await result(store.getAll())
  return all.sort((a, b) => b.updated - a.updated)
}

export async function load(id: string): Promise<Conversation | undefined> {
  const store = (await open()).transaction('conversations').objectStore('conversations')
  return result(store.get(id))
}

export async function loadAll(): Promise<Conversation[]> {
  const store = (await open()).transaction('conversations').objectStore('conversations')
  return result(store.getAll())
}

/** Writes all of them or none. */
export async function save(...conversations: Conversation[]): Promise<void> {
  await write((summaries, whole) => {
    for (const c of conversations) {
      summaries.put(summaryOf(c))
      whole.put(c)
    }
  })
}

export async function remove(id: string): Promise<void> {
  await write((summaries, whole) => {
    summaries.delete(id)
    whole.delete(id)
  })
}
