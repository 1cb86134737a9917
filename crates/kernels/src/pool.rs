//! A persistent pool of threads that costs microseconds to enter and sleeps when idle.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Rounds of waiting before a thread goes to sleep: about 50 microseconds on a machine of 3 GHz.
const SPINS: u32 = 4096;

/// What the workers are running: a task function and the number of tasks.
#[derive(Clone, Copy)]
struct Job {
    /// The caller's closure. Its true lifetime is that of the `run` call which set it.
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the pointer is only followed between the start and the end of `Pool::run`, which keeps
// the closure borrowed, and the closure is `Sync`.
unsafe impl Send for Job {}

struct Shared {
    /// Counts jobs; a change of it is the starting signal.
    epoch: AtomicUsize,
    /// The next task of the current job.
    next: AtomicUsize,
    /// Workers that have not finished the current job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Threads asleep on `wake`.
    sleeping: AtomicUsize,
}

/// Threads that run the tasks of one job at a time; the caller is one of them.
///
/// Which thread runs which task is not fixed, so a task must not depend on it: no kernel does.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the length of a job: two callers take turns.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads in all (at least one: the caller).
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
        });
        let workers = (1..threads.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                let named = std::thread::Builder::new().name(format!("lapidary-{i}"));
                named.spawn(move || work(&shared)).ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads in all, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)`, ..., `task(tasks - 1)`, each once, and returns when all have ended.
    ///
    /// # Panics
    /// If a task panics, after all threads have left the job.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let s = &*self.shared;
        // SAFETY: only the lifetime is erased; the workers leave the job before this function
        // returns, also when a task panics (`Leave`).
        let task: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
                task,
            )
        };
        let job = Job { task, tasks };
        s.next.store(0, Ordering::Relaxed);
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        *s.job.lock().unwrap_or_else(|e| e.into_inner()) = Some(job);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        if s.sleeping.load(Ordering::SeqCst) > 0 {
            let _guard = s.job.lock();
            s.wake.notify_all();
        }
        let mine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_tasks(s, job)));
        let mut spins = 0u32;
        while s.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            // A worker may have lost its core to another process: give it ours.
            if spins.is_multiple_of(SPINS) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        if let Err(panic) = mine {
            s.panicked.store(false, Ordering::Relaxed);
            std::panic::resume_unwind(panic);
        }
        assert!(!s.panicked.swap(false, Ordering::Relaxed), "a task panicked on a pool thread");
    }

    /// Cuts `0..len` into pieces as long as one another, of at least `grain`, and runs `task(start..end)` on
    /// each.
    pub fn split(&self, len: usize, grain: usize, task: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let threads = self.threads();
        // Four pieces a thread even out what other processes take from a core; fewer, if they are equal then.
        let equal = (2..=4).rev().map(|each| each * threads).find(|n| len.is_multiple_of(*n));
        let most = equal.unwrap_or(4 * threads);
        let pieces = (len / grain.max(1)).clamp(len.min(1), most);
        self.run(pieces, &|i| task(i * len / pieces..(i + 1) * len / pieces));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _guard = self.shared.job.lock();
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker that panicked has already been reported by `run`.
            let _ = worker.join();
        }
    }
}

fn run_tasks(s: &Shared, job: Job) {
    loop {
        let i = s.next.fetch_add(1, Ordering::Relaxed);
        if i >= job.tasks {
            return;
        }
        // SAFETY: `Pool::run` keeps the closure alive until `busy` is zero.
        unsafe { (*job.task)(i) };
    }
}

/// Tells that a worker is out of the job, also when the job panicked.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed);
        }
        self.0.busy.fetch_sub(1, Ordering::Release);
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        seen = wait(s, seen);
        if s.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = *s.job.lock().unwrap_or_else(|e| e.into_inner());
        let Some(job) = job else { continue };
        // A panic ends the task, not the thread: the next job needs it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _leave = Leave(s);
            run_tasks(s, job);
        }));
    }
}

/// Waits until the epoch is no longer `seen`; returns the new one.
fn wait(s: &Shared, seen: usize) -> usize {
    for _ in 0..SPINS {
        let now = s.epoch.load(Ordering::SeqCst);
        if now != seen {
            return now;
        }
        std::hint::spin_loop();
    }
    let mut guard = s.job.lock().unwrap_or_else(|e| e.into_inner());
    s.sleeping.fetch_add(1, Ordering::SeqCst);
    let now = loop {
        let now = s.epoch.load(Ordering::SeqCst);
        if now != seen {
            break now;
        }
        guard = s.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
    };
    s.sleeping.fetch_sub(1, Ordering::SeqCst);
    now
}
