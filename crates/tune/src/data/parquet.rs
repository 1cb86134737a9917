//! Rows of a Parquet file as JSON: only the columns that examples are made of.

use lapidary_formats::{FormatError, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::Path;

/// The columns that may be part of an example.
const COLUMNS: [&str; 6] = ["text", "messages", "prompt", "completion", "chosen", "rejected"];

/// An open file.
pub(crate) struct Rows {
    rows: RowIter<'static>,
    file: String,
}

impl Rows {
    /// Opens a file and reads its footer.
    ///
    /// # Errors
    /// If it is no Parquet file, or has none of the columns.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let wrong = |problem: String| FormatError::new(&name, "", problem);
        let file = File::open(path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        let reader = SerializedFileReader::new(file)
            .map_err(|e| wrong(format!("not a Parquet file that can be read: {e}")))?;
        let schema = reader.metadata().file_metadata().schema().clone();
        let wanted: Vec<_> =
            (schema.get_fields().iter()).filter(|f| COLUMNS.contains(&f.name())).cloned().collect();
        if wanted.is_empty() {
            let found: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).take(8).collect();
            let (known, found) = (COLUMNS.join(", "), found.join(", "));
            return Err(wrong(format!("has none of the columns {known}; found {found}")));
        }
        let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build();
        let rows =
            projection.and_then(|p| RowIter::from_file_into(Box::new(reader)).project(Some(p)));
        let rows = rows.map_err(|e| wrong(format!("its columns can't be read: {e}")))?;
        Ok(Self { rows, file: name })
    }

    /// The next row as a JSON object; `number` is for errors.
    ///
    /// # Errors
    /// If the file can't be read on: its compression may be one that is not supported.
    pub(crate) fn next(&mut self, number: u64) -> Result<Option<Value>> {
        let wrong = |e: &dyn std::fmt::Display| {
            let hint = if e.to_string().contains("feature") {
                "; snappy, gzip, lz4 and no compression can be read: write the file anew with one \
                 of them (pandas: df.to_parquet(file, compression=\"snappy\"))"
            } else {
                ""
            };
            FormatError::new(&self.file, format!("row {number}"), format!("{e}{hint}"))
        };
        match self.rows.next() {
            None => Ok(None),
            Some(Err(e)) => Err(wrong(&e)),
            Some(Ok(row)) => Ok(Some(object(&row))),
        }
    }
}

fn object(row: &Row) -> Value {
    let fields = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// A field as JSON; kinds that no example is made of are shown as text.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Str(s) => Value::String(s.clone()),
        Field::Bytes(b) => Value::String(String::from_utf8_lossy(b.data()).into_owned()),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::Double(x) => Number::from_f64(*x).map_or(Value::Null, Value::Number),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => Value::String(other.to_string()),
    }
}
