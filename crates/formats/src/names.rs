//! Names from files in messages: quoted, shortened, and what was perhaps meant.

/// A name of a file's own as a message can show it: control characters escaped, a long one cut.
pub(crate) fn quote(name: &str) -> String {
    match name.char_indices().nth(100) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// A message that may repeat a file's own text, cut to a line or two.
pub(crate) fn shorten(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(300) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Up to three of `names` that look like `wanted`: the same but for a prefix or a suffix, or few
/// letters away.
pub(crate) fn near_misses<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    // Longer names are nobody's slip of the pen, and the distance takes the product of the lengths.
    const LONGEST: usize = 200;
    if wanted.is_empty() || wanted.len() > LONGEST {
        return Vec::new();
    }
    let mut near: Vec<(usize, &str)> = names
        .filter(|name| !name.is_empty() && name.len() <= LONGEST)
        .filter_map(|name| {
            let (short, long) =
                if name.len() < wanted.len() { (name, wanted) } else { (wanted, name) };
            if short.len() >= 5 && (long.ends_with(short) || long.starts_with(short)) {
                return Some((0, name));
            }
            let away = distance(wanted.as_bytes(), name.as_bytes());
            (away <= 1 + wanted.len() / 6).then_some((away, name))
        })
        .collect();
    near.sort();
    near.truncate(3);
    near.into_iter().map(|(_, name)| name).collect()
}

/// Levenshtein's distance in bytes.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        let names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"];
        let near = |w| near_misses(w, names.into_iter());
        assert_eq!(near("norm.weight"), ["model.norm.weight"]);
        assert_eq!(near("lm_heads.weight"), ["lm_head.weight"]);
        assert_eq!(near("language_model.model.norm.weight"), ["model.norm.weight"]);
        assert!(near("vision_tower").is_empty());
        assert!(near(&"x".repeat(100_000)).is_empty());
    }

    #[test]
    fn quotes_are_safe_to_print() {
        assert_eq!(quote("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert!(quote(&"é".repeat(70_000)).len() < 300);
        assert_eq!(shorten("short".into()), "short");
        assert_eq!(shorten("é".repeat(70_000)).chars().count(), 301);
    }
}
