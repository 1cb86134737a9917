//! AMX: tiles of 16 rows of 64 bytes, and products of them (Intel's manual of instruction set
//! extensions, chapter on AMX). Rust has no stable intrinsics for them, so they are written as assembly.
//!
//! A thread that holds [`Tiles`] has the tiles configured; when it is dropped they are released, so
//! that nobody pays for saving eight kilobytes when threads are switched.

/// Tiles that this thread has configured.
pub(crate) struct Tiles(std::marker::PhantomData<*const ()>);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use super::Tiles;
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// The shape of the eight tiles, as `ldtilecfg` reads it.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Config {
        /// Eight tiles of 16 rows of 64 bytes, but `left` bytes in the rows of tiles 4 and 5 and `right`
        /// rows in tiles 6 and 7.
        const fn new(left: u16, right: u8) -> Self {
            let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
            let mut tile = 0;
            while tile < 8 {
                (row_bytes[tile], rows[tile]) = (64, 16);
                tile += 1;
            }
            (row_bytes[4], row_bytes[5], rows[6], rows[7]) = (left, left, right, right);
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
        }
    }

    /// For products of bfloat16s.
    static WHOLE: Config = Config::new(64, 16);
    /// For products of bytes, a block of 32 places at a time.
    static BLOCKS: Config = Config::new(32, 8);
    /// The same, half a block at a time.
    static HALVES: Config = Config::new(16, 4);

    /// Whether the processor has AMX for bytes and bfloat16, and the system lets this process use it
    /// (Linux wants to be asked, by `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
    pub(crate) fn available() -> bool {
        const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let features = __cpuid_count(7, 0).edx;
        if features & BF16_TILE_INT8 != BF16_TILE_INT8 {
            return false;
        }
        let result: i64;
        // SAFETY: a system call that touches no memory of ours; rcx and r11 are what it clobbers.
        unsafe {
            asm!("syscall", inlateout("rax") 158i64 => result, in("rdi") 0x1023, in("rsi") 18,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    impl Tiles {
        /// Whole tiles, for [`Tiles::square_bf16`].
        ///
        /// # Safety
        /// [`available`] must have said yes.
        pub unsafe fn of_bf16() -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self::configured(&WHOLE) }
        }

        /// Tiles for [`Tiles::sums`] over blocks, or over halves of them.
        ///
        /// # Safety
        /// [`available`] must have said yes.
        #[inline(always)]
        pub unsafe fn of_bytes(halves: bool) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self::configured(if halves { &HALVES } else { &BLOCKS }) }
        }

        #[inline(always)]
        unsafe fn configured(config: &'static Config) -> Self {
            // SAFETY: there are tiles, and the configuration is valid.
            unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack)) };
            Self(std::marker::PhantomData)
        }

        /// Begins sums over a block of 32 places (or half of one) in tile `SUMS`, 0 to 3: `x` is sixteen
        /// rows 32 bytes apart, `w` quads of sixteen outputs; both signed. The operands take tiles `X`, 4
        /// or 5, and `W`, 6 or 7: a product may begin while those of another are in use.
        ///
        /// # Safety
        /// Operands must be there; the tiles are [`Tiles::of_bytes`].
        #[inline(always)]
        pub unsafe fn multiply<const SUMS: usize, const X: usize, const W: usize>(
            &self,
            x: *const i8,
            w: *const i8,
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tileloadd tmm{left}, [{x} + {v}*1]",
                    "tileloadd tmm{right}, [{w} + {s}*1]",
                    "tilezero tmm{sums}",
                    "tdpbssd tmm{sums}, tmm{left}, tmm{right}",
                    sums = const SUMS, left = const X, right = const W,
                    x = in(reg) x, w = in(reg) w,
                    v = in(reg) 32usize, s = in(reg) 64usize, options(nostack, readonly)
                );
            }
        }

        /// Stores the sums of tile `SUMS` as `out[16][16]`.
        ///
        /// # Safety
        /// The output must be there.
        #[inline(always)]
        pub unsafe fn store<const SUMS: usize>(&self, out: *mut i32) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tilestored [{out} + {s}*1], tmm{sums}",
                    sums = const SUMS, out = in(reg) out, s = in(reg) 64usize, options(nostack)
                );
            }
        }

        /// Of 32 x 32 outputs, `stride` apart: `c (+)= a b`, for `steps` times 32 places. `a` has for
        /// each step two tiles of `[16 rows][16 pairs]`, `b` `[16 pairs][32 columns]`.
        ///
        /// # Safety
        /// Operands and outputs must be there.
        #[inline(always)]
        pub unsafe fn square_bf16(
            &self,
            steps: usize,
            a: *const u32,
            b: *const u32,
            c: *mut f32,
            stride: usize,
            load: bool,
        ) {
            // SAFETY: the caller's promise; the tiles are configured while `self` lives.
            unsafe {
                let bytes = stride * 4;
                let below = c.add(16 * stride);
                if load {
                    asm!(
                        "tileloadd tmm0, [{c} + {s}*1]",
                        "tileloadd tmm1, [{c} + {s}*1 + 64]",
                        "tileloadd tmm2, [{d} + {s}*1]",
                        "tileloadd tmm3, [{d} + {s}*1 + 64]",
                        c = in(reg) c, d = in(reg) below, s = in(reg) bytes, options(nostack)
                    );
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        options(nostack)
                    );
                }
                asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {w}*1]",
                    "tileloadd tmm4, [{a} + {v}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {w}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a} + {v}*1 + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                    v = in(reg) 64usize, w = in(reg) 128usize, options(nostack)
                );
                asm!(
                    "tilestored [{c} + {s}*1], tmm0",
                    "tilestored [{c} + {s}*1 + 64], tmm1",
                    "tilestored [{d} + {s}*1], tmm2",
                    "tilestored [{d} + {s}*1 + 64], tmm3",
                    c = in(reg) c, d = in(reg) below, s = in(reg) bytes, options(nostack)
                );
            }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the tiles were configured by this thread.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod tiles {
    use super::Tiles;

    /// No tiles here.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn available() -> bool {
        false
    }

    impl Tiles {
        /// Never called: no instruction set of this machine has tiles.
        ///
        /// # Safety
        /// None.
        pub unsafe fn of_bf16() -> Self {
            unreachable!("tiles without AMX")
        }

        /// Never called.
        ///
        /// # Safety
        /// None.
        pub unsafe fn of_bytes(_: bool) -> Self {
            unreachable!("tiles without AMX")
        }

        /// Never called.
        ///
        /// # Safety
        /// None.
        pub unsafe fn multiply<const SUMS: usize, const X: usize, const W: usize>(
            &self,
            _: *const i8,
            _: *const i8,
        ) {
        }

        /// Never called.
        ///
        /// # Safety
        /// None.
        pub unsafe fn store<const SUMS: usize>(&self, _: *mut i32) {}

        /// Never called.
        ///
        /// # Safety
        /// None.
        pub unsafe fn square_bf16(
            &self,
            _: usize,
            _: *const u32,
            _: *const u32,
            _: *mut f32,
            _: usize,
            _: bool,
        ) {
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use tiles::available;
