//! Memory for activations, gradients and packed operands: runs of floats, cut out of large regions.
//!
//! Fresh pages from the system cost more than what is computed into them, so a region stays. A run
//! that is given back joins its free neighbours, and the next one, of whatever size, may take their
//! place: what one kind of buffer no longer needs, another gets. Runs begin on cache lines (a vector
//! that straddles two is loaded twice), regions are of large pages where the system has them.

use crate::buffer::{Buffer, SharedMut};
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Values of a cache line.
const LINE: usize = 16;
/// Values of a region at least, and at most unless one run is longer: 32 MiB and 1 GiB. Pages that
/// nobody has written cost no memory.
const REGION: Range<usize> = 8 << 20..256 << 20;

/// Runs of floats, and what is free between them.
#[derive(Default)]
pub struct Heap {
    regions: Mutex<Vec<Region>>,
    /// Values in all runs that are there.
    live: AtomicUsize,
}

/// A part of the heap's memory.
struct Region {
    /// Its first value; `buffer` holds it.
    first: SharedMut<f32>,
    _buffer: Buffer,
    len: usize,
    /// In order; no two touch.
    free: Vec<Range<usize>>,
}

impl Region {
    /// # Panics
    /// If there is no memory, as every collection of the standard library does.
    fn new(len: usize) -> Self {
        let mut buffer = Buffer::zeroed(4 * len).unwrap_or_else(|problem| panic!("{problem}"));
        let first = SharedMut(buffer.as_mut_ptr().cast());
        let mut region = Self { first, _buffer: buffer, len, free: Vec::new() };
        region.give(0..len);
        region
    }

    fn give(&mut self, run: Range<usize>) {
        let at = self.free.partition_point(|free| free.start < run.start);
        let joins_next = self.free.get(at).is_some_and(|next| next.start == run.end);
        let joins_last = at > 0 && self.free[at - 1].end == run.start;
        match (joins_last, joins_next) {
            (true, true) => self.free[at - 1].end = self.free.remove(at).end,
            (true, false) => self.free[at - 1].end = run.end,
            (false, true) => self.free[at].start = run.start,
            (false, false) => self.free.insert(at, run),
        }
    }
}

impl Heap {
    fn regions(&self) -> MutexGuard<'_, Vec<Region>> {
        self.regions.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Values in all runs that are there.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// A run of `len` values, whatever they are.
    ///
    /// # Panics
    /// If the system has no more memory.
    pub fn take(self: &Arc<Self>, len: usize) -> Run {
        let size = len.max(1).next_multiple_of(LINE);
        let mut regions = self.regions();
        // The free part that fits best: longer ones are kept for longer runs.
        let fits = (regions.iter().enumerate())
            .flat_map(|(r, region)| {
                region.free.iter().enumerate().map(move |(f, free)| (r, f, free.len()))
            })
            .filter(|(.., free)| *free >= size)
            .min_by_key(|(.., free)| *free);
        let (region, free) = match fits {
            Some((region, free, _)) => (region, free),
            None => {
                let total: usize = regions.iter().map(|region| region.len).sum();
                regions.push(Region::new(size.max(total.clamp(REGION.start, REGION.end))));
                (regions.len() - 1, 0)
            }
        };
        let Region { first, free: all, .. } = &mut regions[region];
        let start = all[free].start;
        all[free].start += size;
        if all[free].is_empty() {
            all.remove(free);
        }
        // SAFETY: the part lies in the region.
        let values = SharedMut(unsafe { first.at(start) });
        drop(regions);
        self.live.fetch_add(len, Ordering::Relaxed);
        Run { values, len, region, place: start..start + size, home: self.clone() }
    }

    /// A run of `len` zeros.
    ///
    /// # Panics
    /// If the system has no more memory.
    pub fn zeros(self: &Arc<Self>, len: usize) -> Run {
        let mut run = self.take(len);
        run.fill(0.0);
        run
    }
}

/// Floats in a row, from a [`Heap`], to which they go back.
pub struct Run {
    values: SharedMut<f32>,
    len: usize,
    region: usize,
    place: Range<usize>,
    home: Arc<Heap>,
}

impl Deref for Run {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: initialised values (a region begins as zeros) that are this run's alone and stay where
        // they are as long as the heap, which it holds.
        unsafe { std::slice::from_raw_parts(self.values.0, self.len) }
    }
}

impl DerefMut for Run {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.values.0, self.len) }
    }
}

impl Clone for Run {
    fn clone(&self) -> Self {
        let mut copy = self.home.take(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self[..].fmt(f)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.home.live.fetch_sub(self.len, Ordering::Relaxed);
        self.home.regions()[self.region].give(self.place.clone());
    }
}
