//! Which type each matrix of a quantised file gets: the mixtures that llama.cpp's files of the same
//! names have (`llama_tensor_get_type`), so that sizes and quality can be compared name by name.

use lapidary_ops::BlockType::{self, *};

/// A mixture of types, known to users by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// As `--type` takes it.
    pub name: &'static str,
    /// The type of most matrices.
    pub base: BlockType,
    /// llama.cpp's number for such a file (`llama_ftype`).
    pub file_type: u32,
    /// Whether every matrix gets the base type.
    pub pure: bool,
}

/// Name, type of most matrices, number.
const RECIPES: [(&str, BlockType, u32); 20] = [
    ("f32", F32, 0),
    ("f16", F16, 1),
    ("bf16", BF16, 32),
    ("q8_0", Q8_0, 7),
    ("q4_0", Q4_0, 2),
    ("q4_1", Q4_1, 3),
    ("q5_0", Q5_0, 8),
    ("q5_1", Q5_1, 9),
    ("q2_k", Q2_K, 10),
    ("q3_k_s", Q3_K, 11),
    ("q3_k_m", Q3_K, 12),
    ("q3_k_l", Q3_K, 13),
    ("q4_k_s", Q4_K, 14),
    ("q4_k_m", Q4_K, 15),
    ("q5_k_s", Q5_K, 16),
    ("q5_k_m", Q5_K, 17),
    ("q6_k", Q6_K, 18),
    ("iq4_nl", IQ4_NL, 25),
    ("iq4_xs", IQ4_XS, 30),
    ("mxfp4", MXFP4, 38),
];

/// Other names of some.
const ALIASES: [(&str, &str); 3] = [("q3_k", "q3_k_m"), ("q4_k", "q4_k_m"), ("q5_k", "q5_k_m")];

/// A matrix, as far as its type depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its name in GGUF.
    pub name: &'a str,
    /// Values of a row.
    pub k: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Query heads for each head of keys.
    pub shared: usize,
    /// Whether the embeddings are the output projection too.
    pub tied: bool,
}

impl Recipe {
    /// The recipe of this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let name = ALIASES.iter().find(|a| a.0 == name).map_or(&*name, |a| a.1);
        let &(name, base, file_type) = RECIPES.iter().find(|r| r.0 == name)?;
        Some(Self { name, base, file_type, pure: false })
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        RECIPES.iter().map(|r| r.0)
    }

    /// The type of a matrix, and whether its rows forced another one than the recipe has.
    pub fn ty(&self, at: Place) -> (BlockType, bool) {
        let wanted = if self.pure { self.base } else { self.wanted(at) };
        let got = fitting(wanted, at.k);
        (got, got != wanted)
    }

    fn wanted(&self, at: Place) -> BlockType {
        if self.base.block_len() == 1 {
            return self.base;
        }
        let output = at.name == "output.weight" || at.tied && at.name == "token_embd.weight";
        if output {
            return match self.base {
                Q8_0 | MXFP4 => Q8_0,
                base if !at.k.is_multiple_of(base.block_len()) => Q8_0,
                _ => Q6_K,
            };
        }
        let Some((layer, part)) =
            at.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
        else {
            return self.base;
        };
        let layer = layer.parse().unwrap_or(usize::MAX);
        self.better(part.trim_end_matches(".weight"), layer, at).unwrap_or(self.base)
    }

    /// What sensitive matrices get instead of the base type.
    fn better(&self, part: &str, i: usize, at: Place) -> Option<BlockType> {
        let eighth = at.layers / 8;
        // The first and the last eighth of the layers, and every third between.
        let chosen = i < eighth || i >= 7 * at.layers / 8 || (i - eighth) % 3 == 2;
        let when = |yes: bool, ty: BlockType| yes.then_some(ty);
        match (self.name, part) {
            ("q2_k", "attn_v") => Some(if at.shared >= 4 { Q4_K } else { Q3_K }),
            ("q2_k", "ffn_down" | "attn_output") => Some(Q3_K),
            ("q3_k_m", "attn_v") => Some(if i < 2 { Q5_K } else { Q4_K }),
            ("q3_k_m", "ffn_down") => Some(if i < at.layers / 16 { Q5_K } else { Q4_K }),
            ("q3_k_m", "attn_output" | "attn_qkv") => Some(Q4_K),
            ("q3_k_l", "attn_v" | "ffn_down" | "attn_output") => Some(Q5_K),
            ("q3_k_l", "attn_qkv") => Some(Q4_K),
            ("q4_k_s", "attn_v") => when(i < 4, Q5_K),
            ("q4_k_s", "ffn_down") => when(i < eighth, Q5_K),
            ("q4_k_m", "attn_qkv") => Some(Q5_K),
            ("q5_k_m", "attn_qkv") => Some(Q6_K),
            ("q4_k_m" | "q5_k_m", "attn_v" | "ffn_down") => when(chosen, Q6_K),
            ("iq4_nl" | "iq4_xs", "attn_v") => when(at.shared >= 4, Q5_K),
            ("iq4_nl" | "iq4_xs", "ffn_down") => when(i < eighth, Q5_K),
            _ => None,
        }
    }
}

/// `ty`, or where rows of `k` are not whole blocks the next larger type whose blocks fit.
fn fitting(ty: BlockType, k: usize) -> BlockType {
    let smaller_blocks = match ty {
        _ if k.is_multiple_of(ty.block_len()) => return ty,
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        IQ4_XS => IQ4_NL,
        other => other,
    };
    if k.is_multiple_of(smaller_blocks.block_len()) { smaller_blocks } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(recipe: &str, name: &str, k: usize, layers: usize) -> String {
        let recipe = Recipe::named(recipe).unwrap_or_else(|| panic!("{recipe}"));
        let ty = |i: usize| {
            let name = format!("blk.{i}.{name}.weight");
            recipe.ty(Place { name: &name, k, layers, shared: 8, tied: true }).0.name()
        };
        let all: Vec<&str> = (0..layers).map(ty).collect();
        all.join(" ")
    }

    /// What published Q4_K_M files of Gemma 2B (18 layers) hold.
    #[test]
    fn sensitive_matrices_get_more_bits() {
        let want = "Q6_K Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q4_K \
                    Q6_K Q6_K Q6_K";
        assert_eq!(types("q4_k_m", "attn_v", 2048, 18), want);
        assert_eq!(types("Q4_K", "ffn_down", 16384, 18), want);
        assert_eq!(types("q4_k_m", "attn_k", 2048, 2), "Q4_K Q4_K");
        assert_eq!(types("q2_k", "attn_v", 2048, 2), "Q4_K Q4_K");
    }

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        assert_eq!(types("q4_k_m", "attn_q", 1152, 1), "Q5_0");
        assert_eq!(types("q5_k_m", "attn_q", 1152, 1), "Q5_1");
        assert_eq!(types("q3_k_m", "attn_q", 1152, 1), "Q4_0");
        assert_eq!(types("iq4_xs", "attn_q", 1152, 1), "IQ4_NL");
        assert_eq!(types("q8_0", "attn_q", 48, 1), "F16");
        let place = |k, tied| Place { name: "token_embd.weight", k, layers: 2, shared: 1, tied };
        let ty = |r: &str, at| Recipe::named(r).map(|r| r.ty(at));
        assert_eq!(ty("q4_0", place(1152, true)), Some((Q8_0, true)));
        assert_eq!(ty("q4_0", place(2048, true)), Some((Q6_K, false)));
        assert_eq!(ty("q4_0", place(2048, false)), Some((Q4_0, false)));
        assert_eq!(ty("bf16", place(2048, true)), Some((BF16, false)));
        let pure = Recipe::named("q4_0").map(|r| Recipe { pure: true, ..r });
        assert_eq!(pure.map(|r| r.ty(place(2048, true))), Some((Q4_0, false)));
    }
}
