//! Memory aligned to cache lines, for packed weights and caches.

/// One cache line; also the widest vector.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// A zeroed run of bytes that starts on a cache line.
#[derive(Default)]
pub struct Buffer {
    store: Store,
    len: usize,
}

impl Default for Store {
    fn default() -> Self {
        Store::Lines(Vec::new())
    }
}

enum Store {
    Lines(Vec<Line>),
    /// Pages of their own, large ones where the system has them: weights are read from end to end,
    /// and looking up 4 KiB pages costs a tenth of the bandwidth.
    Pages(memmap2::MmapMut),
}

/// Bytes from which a buffer takes pages of its own: one large page of x86-64.
const LARGE: usize = 2 << 20;

impl Buffer {
    /// `len` zero bytes. Fresh pages from the system, so that untouched ones cost no memory.
    ///
    /// # Errors
    /// If the memory can't be had.
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        if len >= LARGE {
            let pages = memmap2::MmapMut::map_anon(len).map_err(|_| OutOfMemory(len))?;
            // Without large pages it is as good, and slower.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Ok(Self { store: Store::Pages(pages), len });
        }
        let count = len.div_ceil(64);
        let layout = std::alloc::Layout::array::<Line>(count).map_err(|_| OutOfMemory(len))?;
        if count == 0 {
            return Ok(Self { store: Store::Lines(Vec::new()), len });
        }
        // SAFETY: the layout is not empty; zero bytes are a valid `Line`; the pointer, capacity and
        // alignment are those of `Vec<Line>`, which will free it.
        let lines = unsafe {
            let p = std::alloc::alloc_zeroed(layout).cast::<Line>();
            if p.is_null() {
                return Err(OutOfMemory(len));
            }
            Vec::from_raw_parts(p, count, count)
        };
        Ok(Self { store: Store::Lines(lines), len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.store {
            // SAFETY: `lines` holds at least `len` initialised bytes.
            Store::Lines(lines) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), self.len)
            },
            Store::Pages(pages) => pages,
        }
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: both hold at least `len` initialised bytes, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }

    /// The first byte, for writers of disjoint parts on several threads.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.store {
            Store::Lines(lines) => lines.as_mut_ptr().cast(),
            Store::Pages(pages) => pages.as_mut_ptr(),
        }
    }
}

/// Memory of this many bytes could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory(pub usize);

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no memory for {} MiB", self.0 >> 20)
    }
}

impl std::error::Error for OutOfMemory {}

/// A raw pointer that several threads write through, each to its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(pub *mut T);

// SAFETY: whoever makes one promises that threads touch disjoint elements.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// A pointer to element `i`. (A method, so that closures capture the wrapper.)
    ///
    /// # Safety
    /// `i` must be inside the allocation, and no other thread may use the same element.
    #[inline(always)]
    pub unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}
