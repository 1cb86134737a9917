//! Pictures in requests: how dialects send them, and what a model sees of them.

use crate::failure::{Failure, Kind};
use crate::think::{Asked, THOUGHT};
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use lapidary_engine::Gallery;
use lapidary_formats::chat::Message;
use lapidary_formats::{Checkpoint, Rgb};
use lapidary_ops::Cpu;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Pictures of a request at most.
pub const MOST_PICTURES: usize = 32;

/// Why a field that may hold other things than pictures is refused.
pub const NO_FILES: &str = "only text and pictures can be shown to a model yet";
/// Why a picture's address is refused.
pub const NO_FETCHING: &str =
    "pictures are not fetched from the network: send the picture itself, in base64";

/// A picture as a request brought it.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The field that it stood in.
    pub field: String,
    /// Its media type.
    pub kind: &'static str,
    /// Its file in base64, not yet looked at.
    pub data: Arc<str>,
}

impl Image {
    /// A picture of a dialect that has fields for its type and its base64.
    ///
    /// # Errors
    /// If it is of a type that is not read.
    pub fn new(field: String, type_field: &str, kind: &str, data: String) -> Result<Self, Failure> {
        Ok(Self { field, kind: media_type(type_field, kind)?, data: data.into() })
    }

    /// A picture of a dialect that says nothing of its type.
    pub fn untyped(field: String, data: &str) -> Self {
        Self { field, kind: "image/png", data: data.into() }
    }

    /// A picture in a data URL.
    ///
    /// # Errors
    /// If it is another URL, or a data URL of something else.
    pub fn from_url(field: String, url: &str) -> Result<Self, Failure> {
        let scheme = url.split_once(':').map_or("", |(s, _)| s).to_ascii_lowercase();
        if scheme == "http" || scheme == "https" {
            let message = format!("{NO_FETCHING} (data:image/png;base64,...)");
            return Err(Failure::field(field, message));
        }
        let wrong =
            || Failure::field(&field, "a data URL was expected (data:image/png;base64,...)");
        let rest = url.get(5..).filter(|_| scheme == "data").ok_or_else(wrong)?;
        let (head, data) = rest.split_once(',').ok_or_else(wrong)?;
        let kind = head.strip_suffix(";base64").ok_or_else(wrong)?;
        let kind = media_type(&field, kind.split(';').next().unwrap_or_default())?;
        Ok(Self { kind, data: data.into(), field })
    }

    /// The picture as a data URL.
    pub fn url(&self) -> String {
        format!("data:{};base64,{}", self.kind, self.data)
    }

    /// The bytes of its file.
    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        // Lines as base64 prints them, and the alphabet for URLs, which Google's clients use.
        let plain = |b: u8| match b {
            b'\n' | b'\r' => None,
            b'-' => Some(b'+'),
            b'_' => Some(b'/'),
            b => Some(b),
        };
        let text: Vec<u8> = self.data.bytes().filter_map(plain).collect();
        let wrong = |e| Failure::field(&self.field, format!("is not base64: {e}"));
        BASE64.decode(text).map_err(wrong)
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The types that are read. Which of them it is, the file itself says.
fn media_type(field: &str, kind: &str) -> Result<&'static str, Failure> {
    match kind.trim().to_ascii_lowercase().as_str() {
        "image/png" => Ok("image/png"),
        "image/jpeg" | "image/jpg" => Ok("image/jpeg"),
        "image/webp" => Ok("image/webp"),
        _ => {
            let short: String = kind.chars().take(100).collect();
            let message = format!("{short:?} is not image/png, image/jpeg or image/webp");
            Err(Failure::field(field, message))
        }
    }
}

/// What is said in a turn, piece by piece.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// A picture.
    Image(Image),
    /// What the model thought before it said it.
    Thought {
        /// The field that it stood in.
        field: String,
        /// It.
        text: String,
    },
}

/// A conversation as templates take it, and its pictures in the order in which it shows them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// The pictures.
    pub images: Vec<Image>,
    /// Whether the model is to think before it goes on, if anybody has said so.
    pub think: Option<Asked>,
}

impl Conversation {
    /// A turn of text.
    pub fn say(&mut self, role: &str, text: &str) {
        self.messages.push(Message::new(role, text));
    }

    /// A turn of text and pictures. Text behind text is one text.
    ///
    /// # Errors
    /// If somebody else than the user shows a picture, or there are too many; if somebody else than the
    /// model thinks.
    pub fn show(&mut self, role: &str, pieces: Vec<Piece>) -> Result<(), Failure> {
        let mut parts: Vec<Value> = Vec::new();
        let (mut said, mut thought) = (String::new(), String::new());
        let flush = |said: &mut String, parts: &mut Vec<Value>| {
            if !said.is_empty() {
                parts.push(json!({"type": "text", "text": std::mem::take(said)}));
            }
        };
        for piece in pieces {
            match piece {
                Piece::Text(text) => said += &text,
                Piece::Thought { field, .. } if role != "assistant" => {
                    let message = format!("the turn is the {role}'s; only the model thinks");
                    return Err(Failure::field(field, message));
                }
                Piece::Thought { text, .. } => thought += &text,
                Piece::Image(image) if role != "user" => {
                    let message = format!("the turn is the {role}'s; only users show pictures");
                    return Err(Failure::field(image.field, message));
                }
                Piece::Image(image) => {
                    if self.images.len() == MOST_PICTURES {
                        let message = format!("a request has at most {MOST_PICTURES} pictures");
                        return Err(Failure::field(image.field, message));
                    }
                    flush(&mut said, &mut parts);
                    parts.push(json!({"type": "image"}));
                    self.images.push(image);
                }
            }
        }
        if parts.is_empty() {
            self.say(role, &said);
            if let (Some(turn), false) = (self.messages.last_mut(), thought.is_empty()) {
                turn.extra.insert(THOUGHT.to_owned(), thought.into());
            }
            return Ok(());
        }
        flush(&mut said, &mut parts);
        let content = Value::Array(parts);
        self.messages.push(Message { content, ..Message::new(role, "") });
        Ok(())
    }

    /// This and what follows.
    ///
    /// # Errors
    /// If there are too many pictures then.
    pub fn then(mut self, next: Self) -> Result<Self, Failure> {
        if let Some(image) = next.images.get(MOST_PICTURES - self.images.len()) {
            let message = format!("a conversation has at most {MOST_PICTURES} pictures");
            return Err(Failure::field(&image.field, message));
        }
        self.messages.extend(next.messages);
        self.images.extend(next.images);
        self.think = next.think;
        Ok(self)
    }
}

/// The part of a model that sees. It has a device of its own, beside the engine's: texts don't wait
/// until a picture has been looked at; the threads are shared.
pub struct Sight {
    /// The tower.
    pub gallery: Gallery,
    cpu: Mutex<Cpu>,
    /// One picture at a time.
    turn: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

/// Whose picture it is, and SHA-256 of its file.
type Key = (u64, [u8; 32]);

/// What was seen last, the latest at the end: conversations bring their pictures with every turn.
#[derive(Default)]
struct Seen {
    kept: Vec<(Key, Arc<Vec<f32>>)>,
}

/// Bytes of embeddings that are kept, and pictures.
pub const SEEN_BYTES: usize = 32 << 20;
const SEEN_COUNT: usize = 256;

impl Seen {
    fn find(&mut self, key: &Key) -> Option<Arc<Vec<f32>>> {
        let at = self.kept.iter().position(|(k, _)| k == key)?;
        let found = self.kept.remove(at);
        self.kept.push(found.clone());
        Some(found.1)
    }

    fn keep(&mut self, key: Key, features: Arc<Vec<f32>>) {
        self.kept.push((key, features));
        let bytes = |kept: &[(Key, Arc<Vec<f32>>)]| -> usize {
            kept.iter().map(|(_, f)| f.len() * 4).sum()
        };
        while self.kept.len() > SEEN_COUNT || bytes(&self.kept) > SEEN_BYTES {
            self.kept.remove(0);
        }
    }
}

impl Sight {
    /// The part of `checkpoint` that sees, or `projector`, an "mmproj" file, on a device of its own;
    /// `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged, or the two do not belong together.
    pub fn open(
        checkpoint: &Checkpoint,
        projector: Option<&Checkpoint>,
        mut cpu: Cpu,
    ) -> lapidary_formats::Result<Option<Self>> {
        let gallery = match projector {
            Some(projector) => Some(Gallery::with_projector(checkpoint, projector, &mut cpu)?),
            None => Gallery::open(checkpoint, &mut cpu)?,
        };
        Ok(gallery.map(|gallery| Self {
            gallery,
            cpu: Mutex::new(cpu),
            turn: Arc::new(Semaphore::new(1)),
            seen: Mutex::default(),
        }))
    }

    /// What the model sees of pictures of `owner`, whose alone it is: how long an answer takes must
    /// not tell others what was shown.
    ///
    /// # Errors
    /// If one is no picture, or too large.
    pub async fn look(
        self: &Arc<Self>,
        owner: u64,
        images: Vec<Image>,
    ) -> Result<Vec<Arc<Vec<f32>>>, Failure> {
        let mut out = Vec::with_capacity(images.len());
        for image in images {
            let sight = self.clone();
            let (image, key, bytes, found) = aside(move || {
                let bytes = image.bytes()?;
                let key = (owner, Sha256::digest(&bytes).into());
                let found = sight.seen().find(&key);
                Ok((image, key, bytes, found))
            })
            .await?;
            if let Some(features) = found {
                out.push(features);
                continue;
            }
            // An error: never, the semaphore is not closed.
            let turn = self.turn.clone().acquire_owned().await;
            let sight = self.clone();
            // The turn ends with the work, even if the client has gone meanwhile.
            let look = move || {
                let _turn = turn;
                sight.encode(key, &image, &bytes)
            };
            out.push(aside(look).await?);
        }
        Ok(out)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode(&self, key: Key, image: &Image, bytes: &[u8]) -> Result<Arc<Vec<f32>>, Failure> {
        // Another request may have shown the same one while this one waited.
        if let Some(features) = self.seen().find(&key) {
            return Ok(features);
        }
        let wrong = |e: lapidary_formats::FormatError| Failure::field(&image.field, e.problem);
        let rgb = Rgb::decode(bytes, "the picture").map_err(wrong)?;
        let mut cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        let features = self.gallery.encode(&mut *cpu, &rgb);
        self.seen().keep(key, features.clone());
        Ok(features)
    }
}

/// Does work that takes a while where it keeps nobody waiting.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Failure::new(Kind::Internal, e.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> Result<Image, String> {
        Image::from_url("a.url".into(), url).map_err(|f| f.said())
    }

    #[test]
    fn a_url_is_a_picture_in_base64_or_refused() {
        let image = url("data:image/JPG;base64,Zm9v").unwrap();
        assert_eq!((image.kind, &*image.data), ("image/jpeg", "Zm9v"));
        assert_eq!(image.url(), "data:image/jpeg;base64,Zm9v");
        assert!(url("DATA:image/png;name=a;base64,").is_ok());
        for (bad, what) in [
            ("https://example.org/a.png", "not fetched"),
            ("HTTP://example.org", "not fetched"),
            ("file:///etc/passwd", "a data URL was expected"),
            ("/etc/passwd", "a data URL was expected"),
            ("data:image/png,abc", "a data URL was expected"),
            ("data:image/png;base64", "a data URL was expected"),
            ("data:", "a data URL was expected"),
            ("daté:", "a data URL was expected"),
            ("data:image/gif;base64,Zm9v", "\"image/gif\" is not image/png"),
            ("data:text/html;base64,Zm9v", "\"text/html\" is not image/png"),
        ] {
            let refused = url(bad).unwrap_err();
            assert!(refused.starts_with("a.url: ") && refused.contains(what), "{bad}: {refused}");
        }
    }

    #[test]
    fn base64_of_every_fashion_is_decoded() {
        let bytes = |data: &str| Image::untyped("f".into(), data).bytes();
        for data in ["+/+/Zg==", "-_-_Zg==", "-_-_Zg", "+/+/\r\nZg==\n"] {
            assert_eq!(bytes(data), Ok(vec![0xfb, 0xff, 0xbf, b'f']), "{data}");
        }
        for data in ["!", "Zg=!", "Z", "Zg==Zg=="] {
            let refused = bytes(data).unwrap_err().said();
            assert!(refused.starts_with("f: is not base64"), "{refused}");
        }
    }

    #[test]
    fn turns_keep_the_order_of_what_they_say_and_show() {
        let image = |n: &str| Piece::Image(Image::untyped(n.into(), "Zg=="));
        let text = |t: &str| Piece::Text(t.into());
        let mut c = Conversation::default();
        c.show("user", vec![text("a"), text("b"), image("x"), text("c"), image("y")]).unwrap();
        let thought = |t: &str| Piece::Thought { field: "t".into(), text: t.into() };
        c.show("assistant", vec![thought("f"), text("d"), thought("g"), text("e")]).unwrap();
        let parts = json!([{"type": "text", "text": "ab"}, {"type": "image"},
            {"type": "text", "text": "c"}, {"type": "image"}]);
        assert_eq!(c.messages[0].content, parts);
        assert_eq!(c.messages[1].content, json!("de"));
        assert_eq!(c.messages[1].extra["reasoning_content"], "fg");
        assert!(c.show("user", vec![thought("h")]).is_err_and(|f| f.said().starts_with("t: ")));
        assert_eq!(c.images.iter().map(|i| &i.field[..]).collect::<Vec<_>>(), ["x", "y"]);
        assert!(c.show("assistant", vec![image("z")]).is_err_and(|f| f.said().starts_with("z: ")));
        let many = (0..MOST_PICTURES - 1).map(|_| image("m")).collect();
        let mut more = Conversation::default();
        more.show("user", many).unwrap();
        assert!(c.clone().then(more.clone()).is_err());
        assert!(c.show("user", (0..MOST_PICTURES - 1).map(|_| image("m")).collect()).is_err());
        assert_eq!(more.then(Conversation::default()).map(|c| c.images.len()), Ok(31));
    }

    #[test]
    fn what_was_seen_last_is_kept_within_bounds() {
        let mut seen = Seen::default();
        let large = Arc::new(vec![0.0; SEEN_BYTES / 4 / 3]);
        for i in 0..4 {
            seen.keep((i, [0; 32]), large.clone());
            assert!(seen.find(&(0, [0; 32])).is_some() || i > 2);
        }
        assert_eq!(seen.kept.len(), 3);
        assert!(seen.find(&(0, [0; 32])).is_some() && seen.find(&(1, [0; 32])).is_none());
        (0..500).for_each(|i| seen.keep((i, [1; 32]), Arc::default()));
        assert_eq!(seen.kept.len(), SEEN_COUNT);
    }
}
