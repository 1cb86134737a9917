//! Pictures as files hold them: PNG, JPEG, WebP to RGB. Sizes are bounded before anything is
//! decoded.

use crate::{FormatError, Result};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use std::io::Cursor;

/// Pixels in rows, three bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue of each pixel.
    pub data: Vec<u8>,
}

/// Bytes of a picture's file, at most.
pub const MOST_IMAGE_BYTES: usize = 64 << 20;
/// Pixels, at most.
const MOST_PIXELS: u64 = 64 << 20;
/// Bytes that decoding may take.
const MOST_MEMORY: u64 = 512 << 20;

impl Rgb {
    /// Decodes a picture and turns it upright as its EXIF data says; transparent parts lie on white,
    /// as in a browser. `name`: what errors call it.
    ///
    /// # Errors
    /// If it is no PNG, JPEG or WebP file, damaged, or too large.
    pub fn decode(bytes: &[u8], name: &str) -> Result<Self> {
        let wrong = |problem: String| FormatError::new(name, "", problem);
        let damaged = |e: image::ImageError| {
            wrong(format!("is no picture that can be read (PNG, JPEG, WebP): {e}"))
        };
        if bytes.len() > MOST_IMAGE_BYTES {
            let problem = format!("has more than {MOST_IMAGE_BYTES} bytes, the most of a picture");
            return Err(wrong(problem));
        }
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|e| wrong(e.to_string()))?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(MOST_MEMORY);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(wrong("is a picture without pixels".into()));
        }
        if u64::from(width) * u64::from(height) > MOST_PIXELS || decoder.total_bytes() > MOST_MEMORY
        {
            let problem = format!(
                "is a picture of {width} x {height} pixels; {MOST_PIXELS} are allowed: make it smaller"
            );
            return Err(wrong(problem));
        }
        let turned = decoder.orientation().map_err(damaged)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        image.apply_orientation(turned);
        Ok(Self::new(image))
    }

    fn new(image: DynamicImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        if !image.color().has_alpha() {
            return Self { width, height, data: image.into_rgb8().into_raw() };
        }
        let over_white = |c: u8, a: u8| {
            let (c, a) = (u32::from(c), u32::from(a));
            ((c * a + 255 * (255 - a) + 127) / 255) as u8
        };
        let rgba = image.into_rgba8();
        let data = rgba.pixels().flat_map(|p| {
            let [r, g, b, a] = p.0;
            [over_white(r, a), over_white(g, a), over_white(b, a)]
        });
        Self { width, height, data: data.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ColorType, ImageFormat};

    fn encoded(data: &[u8], width: u32, color: ColorType, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let pixels = data.len() as u32 / u32::from(color.bytes_per_pixel());
        image::write_buffer_with_format(&mut out, data, width, pixels / width, color, format)
            .unwrap();
        out.into_inner()
    }

    #[test]
    fn pictures_are_decoded_and_transparent_parts_are_white() {
        let data: Vec<u8> = (0..18).map(|x| x * 14).collect();
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let file = encoded(&data, 3, ColorType::Rgb8, format);
            let want = Rgb { width: 3, height: 2, data: data.clone() };
            assert_eq!(Rgb::decode(&file, "x").unwrap(), want);
        }
        let grey = encoded(&[128; 64], 8, ColorType::L8, ImageFormat::Jpeg);
        assert_eq!(Rgb::decode(&grey, "x").unwrap().data, [128; 192]);
        let clear = encoded(&[0, 0, 0, 0, 9, 9, 9, 255], 2, ColorType::Rgba8, ImageFormat::Png);
        assert_eq!(Rgb::decode(&clear, "x").unwrap().data, [255, 255, 255, 9, 9, 9]);
    }

    #[test]
    fn damaged_and_oversized_files_are_refused_by_name() {
        let data: Vec<u8> = (0..300u32).map(|x| (x * x) as u8).collect();
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let file = encoded(&data, 10, ColorType::Rgb8, format);
            for end in 0..file.len() / 2 {
                let e = Rgb::decode(&file[..end], "cut.png").unwrap_err().to_string();
                assert!(e.starts_with("cut.png"), "{e}");
            }
            // Any byte may be wrong: an error or a picture, and no panic.
            for at in 0..file.len() {
                let mut bad = file.clone();
                bad[at] ^= 0x55;
                let _ = Rgb::decode(&bad, "x");
            }
        }
        for text in ["", "GIF89a", "hello"] {
            assert!(Rgb::decode(text.as_bytes(), "x").is_err());
        }
        let mut huge = encoded(&[0; 3], 1, ColorType::Rgb8, ImageFormat::Png);
        huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let sum = crc(&huge[12..29]).to_be_bytes();
        huge[29..33].copy_from_slice(&sum);
        let e = Rgb::decode(&huge, "huge.png").unwrap_err().to_string();
        assert!(e.contains("huge.png") && e.contains("65536 x 65536"), "{e}");
    }

    /// The checksum of PNG's chunks.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc: u32, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| {
                (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
            })
        })
    }
}
