//! Opening a GGUF file with the parts that belong to it.
//!
//! A split model has files `NAME-00001-of-00003.gguf`, each a GGUF file of its own with the keys
//! `split.no` (from 0), `split.count` and `split.tensors.count`; the first has the model's keys.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::read::{Gguf, read};
use crate::mapped::Bytes;
use crate::{FormatError, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Maps and checks a file; of a split model any part may be named, and the others are found next
/// to it.
pub fn open(path: &Path) -> Result<Gguf> {
    let named = open_one(path)?;
    // 0 is what merging the parts of a split model leaves.
    let count = named.metadata.opt_u32(COUNT)?.unwrap_or(0);
    if count <= 1 {
        return Ok(named);
    }
    let names = PartNames::of(path).filter(|names| names.count == count).ok_or_else(|| {
        let expected =
            format!("its name must end in -00001-of-{count:05}.gguf (or another part's)");
        named.metadata.wrong(COUNT, format!("is {count}, so {expected} for the others to be found"))
    })?;
    let mut whole = open_part(&names, 1)?;
    let mut seen: HashSet<_> = whole.tensors.iter().map(|t| t.name.clone()).collect();
    for number in 2..=count {
        let part = open_part(&names, number)?;
        if let Some(twice) = part.tensors.iter().find(|t| !seen.insert(t.name.clone())) {
            return Err(twice.wrong("is also in an earlier part"));
        }
        whole.tensors.extend(part.tensors);
        whole.files.extend(part.files);
        whole.file_bytes += part.file_bytes;
    }
    let expected = whole.metadata.opt_u64(TENSORS)?;
    let found = whole.tensors.len() as u64;
    if let Some(expected) = expected.filter(|n| *n != found) {
        let problem = format!("is {expected}, but the {count} parts have {found} tensors");
        return Err(whole.metadata.wrong(TENSORS, problem));
    }
    Ok(whole)
}

fn open_one(path: &Path) -> Result<Gguf> {
    read(path.display().to_string().into(), Bytes::open(path)?)
}

/// Opens part `number` (from 1) and checks that it is what its name says.
fn open_part(names: &PartNames, number: u32) -> Result<Gguf> {
    let path = names.path(number);
    if !path.exists() {
        let problem = format!("is missing: part {number} of {} of a split model", names.count);
        return Err(FormatError::new(path.display(), "", problem));
    }
    let part = open_one(&path)?;
    let (no, count) = (part.metadata.u32(NUMBER)?, part.metadata.u32(COUNT)?);
    if no != number - 1 {
        let expected = number - 1;
        let problem = format!("is {no}, but by the file's name it must be {expected}");
        return Err(part.metadata.wrong(NUMBER, problem));
    }
    if count != names.count {
        let problem = format!("is {count}, but by the file's name it must be {}", names.count);
        return Err(part.metadata.wrong(COUNT, problem));
    }
    Ok(part)
}

/// The names of a split model's files.
pub(crate) struct PartNames {
    directory: PathBuf,
    prefix: String,
    /// Which part the name was that this was made of, from 1.
    pub(crate) number: u32,
    count: u32,
}

impl PartNames {
    /// Takes `PREFIX-00001-of-00003.gguf` apart; `None` for other names.
    pub(crate) fn of(path: &Path) -> Option<PartNames> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let (number, count) = (parse(number)?, parse(count)?);
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        (1..=count).contains(&number).then(|| PartNames {
            directory,
            prefix: prefix.to_owned(),
            number,
            count,
        })
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}
