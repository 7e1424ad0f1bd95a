//! The small files beside a model, read with a limit.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Result, TextError};

/// Bytes of the largest tokenizer that is read; the largest known have 40 MB.
pub(super) const TOKENIZER: u64 = 512 << 20;
/// Bytes of the largest other file that is read.
pub(super) const SMALL: u64 = 64 << 20;

/// The content of a file; none where there is no such file.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TextError::read(path, error)),
    };
    let mut content = Vec::new();
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut content);
    read.map_err(|error| TextError::read(path, error))?;
    if content.len() as u64 > limit {
        return Err(TextError::file(
            path,
            format!("is larger than {limit} bytes"),
        ));
    }
    Ok(Some(content))
}

/// The text of a file; none where there is no such file.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    let Some(content) = read(path, SMALL)? else {
        return Ok(None);
    };
    match String::from_utf8(content) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(TextError::file(path, format!("byte {at} is not UTF-8")))
        }
    }
}

/// The JSON object in a file; none where there is no such file.
pub(super) fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(content) = read(path, SMALL)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&content) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(TextError::file(path, "is JSON, but no object")),
        Err(error) => Err(TextError::file(path, format!("is no JSON: {error}"))),
    }
}
