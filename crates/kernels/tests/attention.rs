//! Attention against f64, and the promise that a row's bits depend on that row alone.

use lapidary_kernels::{AttentionSpec, Isa, KV_BLOCK, KvLayer, KvType, Pool, Span, attend};

struct Random(u64);

impl Random {
    fn float(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// One sequence: queries, keys and values of all positions.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(spec: &AttentionSpec, len: usize, random: &mut Random) -> Self {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        Self { q: random.vector(len * q), k: random.vector(len * kv), v: random.vector(len * kv) }
    }

    /// Keys and values as an 8-bit cache holds them: 32 neighbours of a head share a factor.
    fn in_eight_bits(&self, spec: &AttentionSpec) -> Self {
        let rounded = |x: &[f32]| -> Vec<f32> {
            (x.chunks(spec.head_dim).flat_map(|head| head.chunks(32)))
                .flat_map(|part| {
                    let top = part.iter().fold(0.0f32, |top, x| top.max(x.abs()));
                    let code = move |x: &f32| (x * (127.0 / top)).round_ties_even();
                    part.iter().map(move |x| code(x) * (top / 127.0)).collect::<Vec<_>>()
                })
                .collect()
        };
        Self { q: self.q.clone(), k: rounded(&self.k), v: rounded(&self.v) }
    }

    /// The textbook, in f64.
    fn oracle(&self, spec: &AttentionSpec, len: usize) -> Vec<f64> {
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let at = |data: &[f32], heads: usize, p: usize, h: usize, d: usize| {
            f64::from(data[(p * heads + h) * dim + d])
        };
        let mut out = Vec::new();
        for p in 0..len {
            let first = spec.window.map_or(0, |w| (p + 1).saturating_sub(w));
            for h in 0..spec.heads {
                let scores: Vec<f64> = (first..=p)
                    .map(|j| {
                        let dot: f64 = (0..dim)
                            .map(|d| {
                                at(&self.q, spec.heads, p, h, d)
                                    * at(&self.k, spec.kv_heads, j, h / group, d)
                            })
                            .sum();
                        let s = dot * f64::from(spec.scale);
                        spec.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value = |j: usize| at(&self.v, spec.kv_heads, first + j, h / group, d);
                    out.push(
                        weights.iter().enumerate().map(|(j, w)| w * value(j)).sum::<f64>() / sum,
                    );
                }
            }
        }
        out
    }

    /// The kernel, fed `chunk` positions at a time, blocks scattered over the cache.
    fn run(
        &self,
        spec: &AttentionSpec,
        len: usize,
        chunk: usize,
        ty: KvType,
        isa: Isa,
        pool: &Pool,
    ) -> Vec<f32> {
        let mut kv = KvLayer::new(spec.kv_heads, spec.head_dim, ty);
        let blocks = len.div_ceil(KV_BLOCK) as u32;
        kv.grow(blocks as usize).unwrap_or_else(|e| panic!("{e}"));
        // Every second block from the end, then the others.
        let table: Vec<u32> =
            (0..blocks).rev().step_by(2).chain((0..blocks).rev().skip(1).step_by(2)).collect();
        let (width, row) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let mut out = vec![f32::NAN; len * width];
        for first in (0..len).step_by(chunk) {
            let rows = chunk.min(len - first);
            for p in first..first + rows {
                let part = p * row..(p + 1) * row;
                kv.write(table[p / KV_BLOCK] as usize, p, &self.k[part.clone()], &self.v[part]);
            }
            let spans = [Span { rows: 0..rows, position: first, table: &table, together: &[] }];
            let part = first * width..(first + rows) * width;
            attend(isa, pool, spec, &spans, &self.q[part.clone()], &kv, &mut out[part]);
        }
        out
    }
}

fn specs() -> Vec<AttentionSpec> {
    let spec = |heads, kv_heads, head_dim, window, softcap| AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 3.0 / (head_dim as f32).sqrt(),
        window,
        ahead: 0,
        softcap,
    };
    vec![
        spec(4, 1, 16, None, None),
        spec(4, 2, 64, Some(8), Some(4.0)),
        spec(3, 3, 20, Some(33), None),
        spec(20, 1, 32, Some(300), None),
        spec(2, 1, 256, None, Some(50.0)),
        spec(2, 2, 512, Some(256), None),
    ]
}

#[test]
fn attention_agrees_with_f64_whatever_the_chunks_and_threads() {
    let mut random = Random(7);
    for spec in specs() {
        for len in [1, 12, 40, 300, 600] {
            let sequence = Sequence::new(&spec, len, &mut random);
            for ty in [KvType::F32, KvType::F16, KvType::Q8] {
                let want = match ty {
                    KvType::Q8 => sequence.in_eight_bits(&spec).oracle(&spec, len),
                    _ => sequence.oracle(&spec, len),
                };
                let mut first: Option<Vec<u32>> = None;
                for isa in Isa::available() {
                    for (threads, chunk) in [(1, len), (2, len), (2, 7), (2, 64), (3, 1)] {
                        if isa == Isa::Scalar && (len > 300 || chunk == 1 && len > 40) {
                            continue;
                        }
                        let got = sequence.run(&spec, len, chunk, ty, isa, &Pool::new(threads));
                        let case = format!(
                            "{spec:?} {len} {ty:?} {isa:?} {threads} threads, chunks of {chunk}"
                        );
                        let bound = if ty == KvType::F16 { 2e-3 } else { 2e-6 };
                        for (got, want) in got.iter().zip(&want) {
                            assert!((f64::from(*got) - want).abs() < bound, "{case}: {got} {want}");
                        }
                        let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
                        let first = first.get_or_insert_with(|| bits.clone());
                        assert!(*first == bits, "{case}: other bits");
                    }
                }
            }
        }
    }
}

#[test]
fn sequences_in_a_batch_do_not_see_each_other() {
    let mut random = Random(8);
    for spec in specs() {
        let (a, b) = (Sequence::new(&spec, 70, &mut random), Sequence::new(&spec, 35, &mut random));
        let pool = Pool::new(2);
        let isa = Isa::detect();
        let (alone_a, alone_b) = (
            a.run(&spec, 70, 70, KvType::F16, isa, &pool),
            b.run(&spec, 35, 35, KvType::F16, isa, &pool),
        );
        let mut kv = KvLayer::new(spec.kv_heads, spec.head_dim, KvType::F16);
        kv.grow(5).unwrap_or_else(|e| panic!("{e}"));
        let (table_a, table_b) = ([3, 0, 4], [1, 2]);
        let row = spec.kv_heads * spec.head_dim;
        for (s, table, len) in [(&a, &table_a[..], 70), (&b, &table_b[..], 35)] {
            for p in 0..len {
                let part = p * row..(p + 1) * row;
                kv.write(table[p / KV_BLOCK] as usize, p, &s.k[part.clone()], &s.v[part]);
            }
        }
        let spans = [
            Span { rows: 0..70, position: 0, table: &table_a, together: &[] },
            Span { rows: 70..105, position: 0, table: &table_b, together: &[] },
        ];
        let q = [&a.q[..], &b.q[..]].concat();
        let mut out = vec![0.0; q.len()];
        attend(isa, &pool, &spec, &spans, &q, &kv, &mut out);
        assert!(out == [alone_a, alone_b].concat(), "{spec:?}");
    }
}

#[test]
fn half_precision_saturates_instead_of_overflowing() {
    let spec = AttentionSpec {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
        window: Some(1),
        ahead: 0,
        softcap: None,
    };
    let mut kv = KvLayer::new(1, 16, KvType::F16);
    kv.grow(1).unwrap_or_else(|e| panic!("{e}"));
    kv.write(0, 0, &[1.0; 16], &[1e9; 16]);
    kv.write(0, 1, &[1.0; 16], &[2.0; 16]);
    let mut out = vec![0.0; 32];
    let spans = [Span { rows: 0..2, position: 0, table: &[0], together: &[] }];
    attend(Isa::detect(), &Pool::new(1), &spec, &spans, &[1.0; 32], &kv, &mut out);
    assert_eq!(out[..16], [65504.0; 16]);
    assert_eq!(out[16..], [2.0; 16]);
}

#[test]
fn rows_see_ahead_among_those_they_are_together_with() {
    let len = 330;
    for (window, ahead) in [(None, usize::MAX), (Some(9), 8), (Some(40), usize::MAX), (None, 0)] {
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 20,
            scale: 0.7,
            window,
            ahead,
            softcap: None,
        };
        let together = [0..3, 5..300, 310..311];
        let s = Sequence::new(&spec, len, &mut Random(7));
        let mut kv = KvLayer::new(2, 20, KvType::F32);
        kv.grow(len.div_ceil(KV_BLOCK)).unwrap_or_else(|e| panic!("{e}"));
        let table: Vec<u32> = (0..len.div_ceil(KV_BLOCK) as u32).collect();
        for p in 0..len {
            let part = p * 40..(p + 1) * 40;
            kv.write(table[p / KV_BLOCK] as usize, p, &s.k[part.clone()], &s.v[part]);
        }
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            for (threads, cut) in [(1, 330), (2, 330), (2, 300), (1, 5)] {
                let pool = Pool::new(threads);
                let mut out = vec![f32::NAN; len * 80];
                for rows in [0..cut, cut..len] {
                    let at = rows.start * 80..rows.end * 80;
                    let span = Span {
                        rows: 0..rows.len(),
                        position: rows.start,
                        table: &table,
                        together: &together,
                    };
                    if !rows.is_empty() {
                        attend(isa, &pool, &spec, &[span], &s.q[at.clone()], &kv, &mut out[at]);
                    }
                }
                for (at, got) in out.iter().enumerate() {
                    let (p, h, d) = (at / 80, at % 80 / 20, at % 20);
                    let mine = together.iter().find(|r| r.contains(&p)).filter(|_| ahead > 0);
                    let end = mine.map_or(p + 1, |r| r.end.min((p + 1).saturating_add(ahead)));
                    let mut start = window.map_or(0, |w| (p + 1).saturating_sub(w));
                    // A part that sees itself whole does so beyond the window too.
                    if let Some(part) = mine.filter(|_| ahead == usize::MAX) {
                        start = start.min(part.start);
                    }
                    let dot = |j: usize| -> f64 {
                        (0..20)
                            .map(|d| {
                                f64::from(s.q[p * 80 + h * 20 + d])
                                    * f64::from(s.k[j * 40 + h / 2 * 20 + d])
                            })
                            .sum()
                    };
                    let weights: Vec<f64> = (start..end).map(|j| (0.7 * dot(j)).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    let want: f64 = (start..end)
                        .zip(&weights)
                        .map(|(j, w)| w / sum * f64::from(s.v[j * 40 + h / 2 * 20 + d]))
                        .sum();
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{window:?} {p}: {got} {want}");
                }
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                assert_eq!(
                    first.get_or_insert_with(|| bits.clone()),
                    &bits,
                    "{isa:?} {threads} {cut}"
                );
            }
        }
    }
}
