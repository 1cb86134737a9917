//! The kernels by themselves, beside what the machine can do in the same run:
//!
//!     cargo bench -p lapidary-kernels -- [FILTER] [threads=N] [isa=avx2]
//!
//! Products with few rows read weights from memory (320 MiB of them, ten times the cache), so their limit is the
//! bandwidth; products with many rows are bound by arithmetic. Each figure is the median of the
//! passes that fit in a third of a second.

use lapidary_kernels::blocks::BlockType;
use lapidary_kernels::{
    AttentionSpec, ByteRows, FloatRows, Isa, KV_BLOCK, KvLayer, KvType, Layout, Packed, PairRows,
    Pool, Rows, Span, attend, bf16_peak, f32_peak, int8_peak, product_bf16, product_f32,
    product_i8, read_bandwidth,
};
use std::time::{Duration, Instant};

/// The machine and its limits.
struct Machine {
    isa: Isa,
    pool: Pool,
    bandwidth: f64,
    int8: f64,
    bf16: f64,
    f32: f64,
}

/// The median time of a call.
fn median(mut call: impl FnMut()) -> f64 {
    call();
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.len() < 3 || start.elapsed() < Duration::from_millis(330) {
        let one = Instant::now();
        call();
        times.push(one.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Random bytes of weights, with scales that are finite.
fn weights(ty: BlockType, n: usize, k: usize) -> Vec<u8> {
    let mut state = 1u64;
    let bytes = n * k / ty.block_len() * ty.block_bytes();
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) as u8
    };
    let mut out: Vec<u8> = (0..bytes).map(|_| next()).collect();
    // No exponent with all bits set, wherever a half or a float may stand.
    out.iter_mut().for_each(|b| *b &= 0xbb);
    out
}

fn packed(machine: &Machine, ty: BlockType, (n, k): (usize, usize), bytes: &[u8]) -> Packed {
    Packed::new(Rows { ty, n, k, bytes }, &machine.pool, &|_| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn product(machine: &Machine, ty: BlockType, rows: usize, n: usize, k: usize) {
    let (isa, pool) = (machine.isa, &machine.pool);
    // As many matrices as make the stream longer than any cache.
    let bytes = weights(ty, n, k);
    let mut all = vec![packed(machine, ty, (n, k), &bytes)];
    while rows <= 16 && all.len() * all[0].bytes() < 320 << 20 {
        all.push(packed(machine, ty, (n, k), &bytes));
    }
    let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
    let mut out = vec![0.0; rows * n];
    let bytes = ByteRows::new(isa, pool, &x, k);
    let pairs = PairRows::new(isa, pool, &x, k);
    let floats = FloatRows::new(&x, k);
    let seconds = median(|| {
        for w in &all {
            match w.layout {
                Layout::Bf16 => product_bf16(isa, pool, &pairs, w, &mut out),
                Layout::F16 | Layout::F32 => product_f32(isa, pool, &floats, w, &mut out),
                _ => product_i8(isa, pool, &bytes, w, &mut out),
            }
        }
    }) / all.len() as f64;
    let peak = match all[0].layout {
        Layout::Bf16 => machine.bf16,
        Layout::F16 | Layout::F32 => machine.f32,
        _ => machine.int8,
    };
    let (read, rate) = (all[0].bytes() as f64 / seconds, (2 * rows * n * k) as f64 / seconds);
    println!(
        "product {:5} {rows:4} x {n} x {k:5}  {:9.1} us {:7.2} GB/s {:4.0} %  {:7.1} GOP/s {:4.0} %",
        ty.name(),
        seconds * 1e6,
        read / 1e9,
        100.0 * read / machine.bandwidth,
        rate / 1e9,
        100.0 * rate / peak
    );
}

/// Rows of one sequence against `depth` positions, with the heads of Gemma 3 1B.
fn attention(machine: &Machine, ty: KvType, rows: usize, depth: usize) {
    let spec = AttentionSpec {
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        scale: 0.0625,
        window: None,
        ahead: 0,
        softcap: None,
    };
    let blocks = (depth + rows).div_ceil(KV_BLOCK);
    let mut kv = KvLayer::new(spec.kv_heads, spec.head_dim, ty);
    kv.grow(blocks).unwrap_or_else(|e| panic!("{e}"));
    let value = |i: usize| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0;
    for p in 0..depth + rows {
        let row: Vec<f32> = (0..256).map(|i| value(p * 256 + i)).collect();
        kv.write(p / KV_BLOCK, p, &row, &row);
    }
    let table: Vec<u32> = (0..blocks as u32).collect();
    let spans = [Span { rows: 0..rows, position: depth, table: &table, together: &[] }];
    let q: Vec<f32> = (0..rows * 4 * 256).map(value).collect();
    let mut out = vec![0.0; q.len()];
    let seconds = median(|| {
        attend(machine.isa, &machine.pool, &spec, &spans, &q, &kv, &mut out);
    });
    let seen = rows * depth + rows * (rows + 1) / 2;
    let rate = (4 * 4 * 256 * seen) as f64 / seconds;
    let read = (2 * ty.row_bytes(256) * (depth + rows)) as f64 / seconds;
    println!(
        "attend  {ty:?} {rows:4} rows at {depth:5}   {:9.1} us {:7.2} GB/s        {:7.1} GOP/s {:4.0} %",
        seconds * 1e6,
        read / 1e9,
        rate / 1e9,
        100.0 * rate / machine.f32
    );
}

/// Arranging activations for a product.
fn arrange(machine: &Machine, rows: usize, k: usize) {
    let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
    let (isa, pool) = (machine.isa, &machine.pool);
    let mut bytes = ByteRows::new(isa, pool, &x, k);
    let eight = median(|| bytes.fill(isa, pool, &x, k));
    let mut pairs = PairRows::new(isa, pool, &x, k);
    let sixteen = median(|| pairs.fill(isa, pool, &x, k));
    for (name, seconds) in [("8 bits", eight), ("bf16", sixteen)] {
        let rate = (4 * rows * k) as f64 / seconds / 1e9;
        println!("arrange {name:6} {rows:4} x {k:5} {:17.1} us {rate:7.2} GB/s", seconds * 1e6);
    }
}

fn main() {
    // `cargo bench` passes --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let of = |key: &str| args.iter().find_map(|a| a.strip_prefix(key));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = of("threads=").and_then(|t| t.parse().ok()).unwrap_or(cores);
    let isa = of("isa=").and_then(|name| Isa::available().into_iter().find(|i| i.name() == name));
    let (isa, pool) = (isa.unwrap_or(Isa::detect()), Pool::new(threads));
    let machine = Machine {
        bandwidth: read_bandwidth(isa, &pool).unwrap_or_else(|e| panic!("{e}")),
        int8: int8_peak(isa, &pool),
        bf16: bf16_peak(isa, &pool),
        f32: f32_peak(isa, &pool),
        isa,
        pool,
    };
    println!(
        "{} threads, {}: reads {:.1} GB/s; {:.0} GOP/s in 8 bits, {:.0} in bfloat16, {:.0} in f32",
        threads,
        isa.name(),
        machine.bandwidth / 1e9,
        machine.int8 / 1e9,
        machine.bf16 / 1e9,
        machine.f32 / 1e9
    );
    let filter = args.iter().find(|a| !a.contains('=')).map_or("", String::as_str);
    let types = [
        BlockType::Q4_0,
        BlockType::Q5_0,
        BlockType::Q8_0,
        BlockType::Q4_K,
        BlockType::Q6_K,
        BlockType::BF16,
        BlockType::F16,
    ];
    for ty in types {
        for (rows, n, k) in [(1, 4096, 2048), (4, 4096, 2048), (16, 4096, 2048), (256, 4096, 2048)]
        {
            if format!("product {}", ty.name()).contains(filter) {
                product(&machine, ty, rows, n, k);
            }
        }
    }
    if "attend".contains(filter) {
        for ty in [KvType::Q8, KvType::F16, KvType::F32] {
            for (rows, depth) in [(1, 512), (1, 4096), (256, 256), (256, 4096)] {
                attention(&machine, ty, rows, depth);
            }
        }
    }
    if "arrange".contains(filter) {
        for (rows, k) in [(1, 2048), (256, 2048), (256, 6912)] {
            arrange(&machine, rows, k);
        }
    }
}
