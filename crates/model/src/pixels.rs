//! Pictures to the patches that vision towers read.

use lapidary_formats::Rgb;
use std::borrow::Cow;

/// A picture cut in square patches, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Patches of a row.
    pub columns: usize,
    /// Rows of patches.
    pub rows: usize,
    /// The values of each patch, patch after patch.
    pub values: Vec<f32>,
}

impl Patches {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.columns * self.rows
    }
}

/// Bits of a weight behind the point, as in Pillow's `Resample.c`: with them the bytes are the same.
const BITS: u32 = 22;

/// The filter of a change of size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Bilinear,
    /// Keys' with a = -1/2, as Pillow and torchvision have it.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Filter::Bicubic => 0.0,
        }
    }

    /// For each of `to` places the first of `from` values that count, and their weights, in parts of
    /// 2^[`BITS`]. Where the picture shrinks, the filter widens ("antialias").
    fn weights(self, from: usize, to: usize) -> Vec<(usize, Vec<i64>)> {
        let step = from as f64 / to as f64;
        let wide = step.max(1.0);
        let reach = self.support() * wide;
        (0..to)
            .map(|i| {
                let centre = (i as f64 + 0.5) * step;
                let first = (centre - reach + 0.5).max(0.0) as usize;
                let end = ((centre + reach + 0.5) as usize).min(from);
                let weights: Vec<f64> =
                    (first..end).map(|x| self.at((x as f64 - centre + 0.5) / wide)).collect();
                let sum: f64 = weights.iter().sum();
                let fixed = |w: f64| (w / sum * (1 << BITS) as f64).round() as i64;
                (first, weights.into_iter().map(fixed).collect())
            })
            .collect()
    }
}

/// The picture in another size, as Pillow 13 does it: in two passes, each rounded to bytes, and the rows
/// before the columns where the height shrinks by more than twice what the width does.
pub(crate) fn resize(image: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let (less_high, less_wide) = (shrinks(image.height, height), shrinks(image.width, width));
    let image = Cow::Borrowed(image);
    let resized = if less_high > 0 && less_high > 2 * less_wide {
        with_width(with_height(image, height, filter), width, filter)
    } else {
        with_height(with_width(image, width, filter), height, filter)
    };
    resized.into_owned()
}

/// A sum of weighted bytes as a byte.
fn rounded(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

fn with_width(image: Cow<Rgb>, width: usize, filter: Filter) -> Cow<Rgb> {
    if image.width == width {
        return image;
    }
    let mut data = Vec::with_capacity(width * image.height * 3);
    let weights = filter.weights(image.width, width);
    for row in image.data.chunks_exact(image.width * 3) {
        for (first, weights) in &weights {
            for c in 0..3 {
                let values = weights.iter().enumerate();
                let value = |(i, w): (usize, &i64)| w * i64::from(row[(first + i) * 3 + c]);
                data.push(rounded(values.map(value).sum()));
            }
        }
    }
    Cow::Owned(Rgb { width, height: image.height, data })
}

fn with_height(image: Cow<Rgb>, height: usize, filter: Filter) -> Cow<Rgb> {
    if image.height == height {
        return image;
    }
    let row = image.width * 3;
    let mut data = Vec::with_capacity(row * height);
    for (first, weights) in filter.weights(image.height, height) {
        for at in 0..row {
            let values = weights.iter().enumerate();
            let value = |(i, w): (usize, &i64)| w * i64::from(image.data[(first + i) * row + at]);
            data.push(rounded(values.map(value).sum()));
        }
    }
    Cow::Owned(Rgb { width: image.width, height, data })
}

/// Patches of `size` pixels a side, the values of each in the order rows, columns, colours, or
/// (`planes`) colours, rows, columns; a byte becomes `byte / 255 * scale + shift`.
pub(crate) fn patches(
    image: &Rgb,
    size: usize,
    planes: bool,
    (scale, shift): (f32, f32),
) -> Patches {
    let (columns, rows) = (image.width / size, image.height / size);
    let mut values = Vec::with_capacity(columns * rows * size * size * 3);
    let mut push = |y: usize, x: usize, c: usize| {
        let byte = image.data[(y * image.width + x) * 3 + c];
        values.push(f32::from(byte) / 255.0 * scale + shift);
    };
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let (y0, x0) = (row * size, column * size);
        let pixels = (0..size).flat_map(|y| (0..size).map(move |x| (y0 + y, x0 + x)));
        if planes {
            for c in 0..3 {
                pixels.clone().for_each(|(y, x)| push(y, x, c));
            }
        } else {
            pixels.for_each(|(y, x)| (0..3).for_each(|c| push(y, x, c)));
        }
    }
    Patches { columns, rows, values }
}

/// The largest size of the picture's aspect that has at most `tokens` squares of `side` pixels and
/// whole ones: Gemma 4's. From one square a side to the `longest` line that a model has positions for
/// (published ones have more than they need).
pub(crate) fn fill(
    (width, height): (usize, usize),
    side: usize,
    tokens: usize,
    longest: usize,
) -> (usize, usize) {
    let budget = (tokens * side * side) as f64;
    let factor = (budget / (width as f64 * height as f64)).sqrt();
    let whole = |x: usize| (factor * x as f64 / side as f64).floor() as usize;
    let (w, h) = match (whole(width), whole(height)) {
        (_, 0) => ((width / height).clamp(1, tokens), 1),
        (0, _) => (1, (height / width).clamp(1, tokens)),
        both => both,
    };
    (w.min(longest) * side, h.min(longest) * side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fill_the_budget() {
        // 61 x 83 pixels in squares of 12, 70 of them: 108 x 84 = 9 x 7.
        assert_eq!(fill((83, 61), 12, 70, 3413), (108, 84));
        assert_eq!(fill((48, 48), 48, 280, 3413), (16 * 48, 16 * 48));
        assert_eq!(fill((10_000, 10), 48, 70, 3413), (70 * 48, 48));
        assert_eq!(fill((10, 10_000), 48, 70, 3413), (48, 70 * 48));
        assert_eq!(fill((10, 10_000), 48, 70, 21), (48, 21 * 48));
        for (w, h) in [(1, 1), (3000, 2), (640, 480), (481, 1), (16_384, 16_384), (7, 333)] {
            for tokens in [70, 140, 280, 560, 1120] {
                let (x, y) = fill((w, h), 48, tokens, 3413);
                assert!(x > 0 && y > 0 && x / 48 * (y / 48) <= tokens, "{w} {h}: {x} {y}");
            }
        }
    }

    #[test]
    fn sizes_change_smoothly_and_flat_pictures_stay_flat() {
        let flat = Rgb { width: 7, height: 5, data: [9, 200, 255].repeat(35) };
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for (w, h) in [(3, 2), (20, 31), (7, 4)] {
                let got = resize(&flat, w, h, filter);
                assert_eq!(got, Rgb { width: w, height: h, data: [9, 200, 255].repeat(w * h) });
            }
            // A ramp stays a ramp away from the edges.
            let ramp =
                Rgb { width: 64, height: 1, data: (0..64).flat_map(|x| [x * 3; 3]).collect() };
            let half = resize(&ramp, 32, 1, filter);
            for x in 4..28 {
                assert!((i32::from(half.data[x * 3]) - (6 * x as i32 + 1)).abs() <= 1);
            }
        }
    }

    #[test]
    fn patches_are_cut_in_both_orders() {
        let image = Rgb { width: 4, height: 2, data: (0..24).collect() };
        let by_pixel = patches(&image, 2, false, (255.0, 0.0));
        assert_eq!((by_pixel.columns, by_pixel.rows), (2, 1));
        assert_eq!(
            by_pixel.values[12..],
            [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23].map(|x| x as f32)
        );
        let by_plane = patches(&image, 2, true, (255.0, 1.0));
        assert_eq!(
            by_plane.values[..12],
            [1, 4, 13, 16, 2, 5, 14, 17, 3, 6, 15, 18].map(|x| x as f32)
        );
    }
}
